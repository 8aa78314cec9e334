import Foundation
import XCTest

@testable import LibrorumFrames

/// The frames that the tests of every language read.
final class GoldenFramesTests: XCTestCase {
    struct Golden: Decodable {
        let frames: [Valid]
        let invalid: [Invalid]
    }

    struct Valid: Decodable {
        let name: String
        let hex: String
        let kind: String
        let opcode: UInt16
        let flags: UInt32
        let payload_len: UInt32
        let request_id: UInt64
        let meta_len: UInt16
        let fd_count: UInt8
        let status: UInt8
        let meta: String
        let payload: String
        let prefix: Prefix?
        let transfer: Transfer?
    }

    struct Prefix: Decodable {
        let deadline_ms: UInt32
        let trace_id: UInt64
        let key: String?
    }

    struct Transfer: Decodable {
        let handle: UInt64
        let offset: UInt64
        let len: UInt32
        let slot: UInt32?
    }

    struct Invalid: Decodable {
        let name: String
        let hex: String
        let reason: String
    }

    private let kinds: [String: FrameHeader.Kind] = [
        "REQ": .request, "RES": .response, "DATA": .data, "CREDIT": .credit, "CANCEL": .cancel,
        "PING": .ping, "GOAWAY": .goAway,
    ]

    private func golden() throws -> Golden {
        let url = try XCTUnwrap(
            Bundle.module.url(forResource: "golden-frames", withExtension: "json"))
        return try JSONDecoder().decode(Golden.self, from: Data(contentsOf: url))
    }

    private func bytes(_ hex: String) throws -> [UInt8] {
        let digits = Array(hex)
        XCTAssertEqual(digits.count % 2, 0)
        return try stride(from: 0, to: digits.count, by: 2).map { index in
            try XCTUnwrap(UInt8(String(digits[index...index + 1]), radix: 16))
        }
    }

    func testFramesAreWhatTheyMean() throws {
        let frames = try golden().frames
        XCTAssertGreaterThan(frames.count, 20)
        for expected in frames {
            let encoded = try bytes(expected.hex)
            // What follows a frame is not its business.
            let frame = try Frame(encoded + [1, 2, 3], limits: .widest)
            XCTAssertEqual(frame.header.kind, kinds[expected.kind], expected.name)
            XCTAssertEqual(frame.header.opcode, expected.opcode, expected.name)
            XCTAssertEqual(frame.header.flags.rawValue, expected.flags, expected.name)
            XCTAssertEqual(frame.header.payloadByteCount, expected.payload_len, expected.name)
            XCTAssertEqual(frame.header.requestID, expected.request_id, expected.name)
            XCTAssertEqual(frame.header.metaByteCount, expected.meta_len, expected.name)
            XCTAssertEqual(frame.header.descriptorCount, expected.fd_count, expected.name)
            XCTAssertEqual(frame.header.status, expected.status, expected.name)
            XCTAssertEqual(frame.meta, try bytes(expected.meta), expected.name)
            XCTAssertEqual(frame.payload, try bytes(expected.payload), expected.name)
            if let expectedPrefix = expected.prefix {
                let prefix = try RequestPrefix(frame)
                XCTAssertEqual(prefix.deadlineMilliseconds, expectedPrefix.deadline_ms)
                XCTAssertEqual(prefix.traceID, expectedPrefix.trace_id)
                XCTAssertEqual(prefix.key, try expectedPrefix.key.map(bytes))
                if let expectedTransfer = expected.transfer {
                    let message = Array(frame.meta.dropFirst(prefix.byteCount))
                    let transfer = try LibrorumFrames.Transfer(message)
                    XCTAssertEqual(transfer.handle, expectedTransfer.handle)
                    XCTAssertEqual(transfer.offset, expectedTransfer.offset)
                    XCTAssertEqual(transfer.byteCount, expectedTransfer.len)
                    XCTAssertEqual(transfer.slot, expectedTransfer.slot)
                }
            }
        }
    }

    func testNoPartOfAFrameIsOne() throws {
        for expected in try golden().frames {
            let encoded = try bytes(expected.hex)
            for length in 0..<encoded.count {
                XCTAssertThrowsError(try Frame(encoded.prefix(length), limits: .widest)) { error in
                    XCTAssertEqual(error as? FrameError, .short, expected.name)
                }
            }
        }
    }

    func testWhatIsNoFrameIsRefusedForItsReason() throws {
        let invalid = try golden().invalid
        XCTAssertGreaterThan(invalid.count, 10)
        for expected in invalid {
            let encoded = try bytes(expected.hex)
            XCTAssertThrowsError(try FrameHeader(encoded, limits: .widest)) { error in
                XCTAssertEqual((error as? FrameError)?.rawValue, expected.reason, expected.name)
            }
        }
    }

    func testTheChecksumIsCastagnolis() {
        // RFC 3720, B.4, and the check value of the catalogues.
        XCTAssertEqual(crc32c([UInt8](repeating: 0, count: 32)), 0x8a91_36aa)
        XCTAssertEqual(crc32c("123456789".utf8), 0xe306_9283)
    }
}
