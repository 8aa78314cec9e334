import Foundation
import XCTest

import Librorum

/// Against the daemon whose socket is `LIBRORUM_SOCKET`; skipped where there is none.
final class ClientTests: XCTestCase {
    private func connect() throws -> Client {
        guard let socket = ProcessInfo.processInfo.environment["LIBRORUM_SOCKET"] else {
            throw XCTSkip("LIBRORUM_SOCKET is not set")
        }
        return try Client(socket)
    }

    // Not asynchronous, so that it tests the calls that wait.
    func testContentsComeBack() throws {
        let client = try connect()
        let content = Data((0..<1_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
        var options = WriteOptions()
        options.sizeHint = UInt64(content.count)
        options.mode = 0o640
        let upload = try client.create("swift-contents", options: options)
        try upload.write(content.suffix(from: 500_000), at: 500_000)
        try upload.write(content.prefix(500_000), at: 0)
        let entry = try upload.commit()
        XCTAssertEqual(entry.byteCount, UInt64(content.count))
        XCTAssertEqual(entry.mode, 0o640)
        XCTAssertThrowsError(try upload.commit()) { error in
            XCTAssertEqual((error as? LibrorumError)?.kind, "InvalidHandle")
        }

        var file: File? = try client.open("swift-contents")
        let mapped = try XCTUnwrap(file).map(at: 1000, count: 5000)
        var buffer = [UInt8](repeating: 0, count: content.count + 7)
        let count = try buffer.withUnsafeMutableBytes { try XCTUnwrap(file).read(into: $0) }
        XCTAssertEqual(Data(buffer.prefix(count)), content)
        XCTAssertTrue(try XCTUnwrap(file).map(at: 2_000_000).isEmpty)
        // It outlives its file.
        file = nil
        XCTAssertEqual(mapped, content[1000..<6000])
        try client.remove("swift-contents")
    }

    func testSmallOperations() async throws {
        let client = try connect()
        try await client.makeDirectory("swift/a/b", parents: true)
        try await client.rename("swift/a/b", to: "swift/c")
        var paths: Set<RemotePath> = []
        for try await listed in try client.list("swift", recursive: true) {
            paths.insert(listed.path)
        }
        XCTAssertEqual(paths, ["a", "c"])
        do {
            _ = try await client.stat("swift/no")
            XCTFail("it is not there")
        } catch let error as LibrorumError {
            XCTAssertEqual(error.kind, "NotFound")
            XCTAssertEqual(error.errno, 2)
        }
        let removed = try await client.remove("swift", as: .tree)
        XCTAssertEqual(removed, 3)
    }

    func testAZeroByteEndsNoPathEarly() throws {
        let client = try connect()
        XCTAssertThrowsError(try client.stat(RemotePath(bytes: [97, 0, 98]))) { error in
            XCTAssertEqual((error as? LibrorumError)?.kind, "InvalidInput")
        }
    }
}
