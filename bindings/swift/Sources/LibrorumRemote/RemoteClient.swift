import Foundation
import GRPCCore
import GRPCNIOTransportHTTP2
import SwiftProtobuf

/// Connects to a daemon of another machine for as long as `body` lasts.
///
/// `security` is `.plaintext` only for a daemon that is reached through something that encrypts.
public func withRemoteClient<Value: Sendable>(
    host: String,
    port: Int,
    token: String?,
    security: HTTP2ClientTransport.Posix.TransportSecurity,
    _ body: @Sendable (RemoteClient<HTTP2ClientTransport.Posix>) async throws -> Value
) async throws -> Value {
    try await withGRPCClient(
        transport: .http2NIOPosix(
            target: .dns(host: host, port: port),
            transportSecurity: security
        )
    ) { client in
        try await body(RemoteClient(client, token: token))
    }
}

/// The files of a daemon, over any transport of gRPC. What it takes and answers are the messages of
/// `proto/librorum/v1/files.proto`; what fails is a `RemoteError`.
public struct RemoteClient<Transport: ClientTransport>: Sendable {
    private let files: Librorum_V1_Files.Client<Transport>
    private let metadata: Metadata

    /// A client that is running: see `withRemoteClient`, or `GRPCClient.runConnections`.
    public init(_ client: GRPCClient<Transport>, token: String?) {
        files = Librorum_V1_Files.Client(wrapping: client)
        var metadata = Metadata()
        if let token {
            metadata.addString("Bearer \(token)", forKey: "authorization")
        }
        self.metadata = metadata
    }

    /// What a name stands for. Paths are bytes: `Data("letters/a".utf8)`.
    public func stat(_ path: Data, volume: String = "") async throws -> Librorum_V1_Entry {
        let request = Librorum_V1_StatRequest.with {
            $0.volume = volume
            $0.path = path
        }
        return try await translated { try await files.stat(request, metadata: metadata).entry }
    }

    /// One page of a directory; `cursor` is that of the page before, and empty after the last.
    public func list(
        _ path: Data, recursive: Bool = false, cursor: Data = Data(), volume: String = ""
    ) async throws -> Librorum_V1_ListResponse {
        let request = Librorum_V1_ListRequest.with {
            $0.volume = volume
            $0.path = path
            $0.recursive = recursive
            $0.cursor = cursor
        }
        return try await translated { try await files.list(request, metadata: metadata) }
    }

    @discardableResult
    public func makeDirectory(
        _ path: Data, mode: UInt32 = 0o777, parents: Bool = false, volume: String = ""
    ) async throws -> Librorum_V1_Entry {
        let request = Librorum_V1_MakeDirectoryRequest.with {
            $0.volume = volume
            $0.path = path
            $0.mode = mode
            $0.parents = parents
        }
        return try await translated {
            try await files.makeDirectory(request, metadata: metadata).entry
        }
    }

    /// Removes a name. `errors` of the answer has what could not be removed of a tree.
    @discardableResult
    public func remove(
        _ path: Data, recursive: Bool = false, missingOK: Bool = false, volume: String = ""
    ) async throws -> Librorum_V1_RemoveResponse {
        let request = Librorum_V1_RemoveRequest.with {
            $0.volume = volume
            $0.path = path
            $0.recursive = recursive
            $0.missingOk = missingOK
        }
        return try await translated { try await files.remove(request, metadata: metadata) }
    }

    @discardableResult
    public func rename(
        _ source: Data, to target: Data, replace: Librorum_V1_Replace = .yes, volume: String = ""
    ) async throws -> Librorum_V1_Entry {
        let request = Librorum_V1_RenameRequest.with {
            $0.volume = volume
            $0.from = source
            $0.to = target
            $0.replace = replace
        }
        return try await translated { try await files.rename(request, metadata: metadata).entry }
    }

    @discardableResult
    public func copy(
        _ source: Data, to target: Data, replace: Librorum_V1_Replace = .yes, volume: String = ""
    ) async throws -> Librorum_V1_Entry {
        let request = Librorum_V1_CopyRequest.with {
            $0.volume = volume
            $0.from = source
            $0.to = target
            $0.replace = replace
        }
        return try await translated { try await files.copy(request, metadata: metadata).entry }
    }

    /// Reads a range, and hands its bytes on as they come, with their offsets in the file. The daemon is
    /// held back while `receive` takes its time. A `length` of 0 is up to the end. Answers what the file is.
    public func read(
        _ path: Data, offset: UInt64 = 0, length: UInt64 = 0, volume: String = "",
        _ receive: @escaping @Sendable (Data, UInt64) async throws -> Void
    ) async throws -> Librorum_V1_Entry {
        let request = Librorum_V1_ReadRequest.with {
            $0.volume = volume
            $0.path = path
            $0.offset = offset
            $0.length = length
        }
        return try await translated {
            try await files.read(request, metadata: metadata) { response -> Librorum_V1_Entry in
                var entry = Librorum_V1_Entry()
                for try await message in response.messages {
                    if message.hasEntry { entry = message.entry }
                    if !message.data.isEmpty {
                        try await receive(message.data, message.offset)
                    }
                }
                return entry
            }
        }
    }

    /// Writes a file whole: it appears when all of `content` has arrived. If anything fails before, there
    /// is none.
    @discardableResult
    public func write<Content: AsyncSequence & Sendable>(
        _ content: Content, to path: Data, sizeHint: UInt64 = 0, mode: UInt32 = 0o644,
        replace: Librorum_V1_Replace = .yes, durable: Bool = false, volume: String = ""
    ) async throws -> Librorum_V1_Entry where Content.Element == Data {
        let open = Librorum_V1_OpenWriteRequest.with {
            $0.volume = volume
            $0.path = path
            $0.sizeHint = sizeHint
            $0.want = .grpc
        }
        let upload = try await translated {
            try await files.openWrite(open, metadata: metadata).upload
        }
        do {
            let length = try await send(content, to: upload)
            let commit = Librorum_V1_CommitRequest.with {
                $0.upload = upload
                $0.volume = volume
                $0.path = path
                $0.len = length
                $0.mode = mode
                $0.replace = replace
                $0.durable = durable
            }
            return try await translated {
                try await files.commit(commit, metadata: metadata).entry
            }
        } catch {
            // What failed is what the caller hears of; the daemon ends a forgotten upload by itself.
            let abort = Librorum_V1_AbortRequest.with { $0.upload = upload }
            _ = try? await files.abort(abort, metadata: metadata)
            throw error
        }
    }

    /// Sends all parts from offset 0 on. Answers how many bytes the daemon has written.
    private func send<Content: AsyncSequence & Sendable>(
        _ content: Content, to upload: UInt64
    ) async throws -> UInt64 where Content.Element == Data {
        try await translated {
            try await files.write(metadata: metadata) { writer in
                var offset: UInt64 = 0
                for try await part in content {
                    var rest = part
                    while !rest.isEmpty {
                        // Far below what a message may have, and enough to keep the connection busy.
                        let step = rest.prefix(1 << 20)
                        let message = Librorum_V1_WriteRequest.with {
                            $0.upload = upload
                            $0.offset = offset
                            $0.data = step
                        }
                        try await writer.write(message)
                        offset += UInt64(step.count)
                        rest = rest.dropFirst(step.count)
                    }
                }
            }.writtenBytes
        }
    }

    /// Does a call, with the daemon's own words for what fails.
    private func translated<Value: Sendable>(
        _ call: @Sendable () async throws -> Value
    ) async throws -> Value {
        do {
            return try await call()
        } catch let error as RPCError {
            throw RemoteError(error)
        }
    }
}
