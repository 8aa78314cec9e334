import CLibrorum
import Dispatch
import Foundation

/// Where calls wait: threads of the cooperative pool must not.
private let waiters = DispatchQueue(label: "librorum", attributes: .concurrent)

/// Does what may wait on a thread of its own.
///
/// The work is not cancelled with the task; `ConnectOptions.deadlineMilliseconds` bounds it.
func waiting<Value: Sendable>(
    _ work: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        waiters.async {
            continuation.resume(with: Result { try work() })
        }
    }
}

// Each has the name of what it does on another thread: within the closures, which are not
// asynchronous, that is the one that is called.

extension Client {
    /// Connects without blocking the caller's thread.
    public static func connect(
        _ target: String, options: ConnectOptions = ConnectOptions()
    ) async throws -> Client {
        try await waiting { try Client(target, options: options) }
    }

    public func stat(_ path: RemotePath, volume: String = "") async throws -> Entry {
        try await waiting { try self.stat(path, volume: volume) }
    }

    @discardableResult
    public func makeDirectory(
        _ path: RemotePath, mode: UInt32 = 0o777, parents: Bool = false, volume: String = ""
    ) async throws -> Entry {
        try await waiting {
            try self.makeDirectory(path, mode: mode, parents: parents, volume: volume)
        }
    }

    @discardableResult
    public func remove(
        _ path: RemotePath, as removal: Removal = .file, missingOK: Bool = false,
        volume: String = ""
    ) async throws -> UInt64 {
        try await waiting {
            try self.remove(path, as: removal, missingOK: missingOK, volume: volume)
        }
    }

    @discardableResult
    public func rename(
        _ source: RemotePath, to target: RemotePath, replace: Replace = .yes, volume: String = ""
    ) async throws -> Entry {
        try await waiting {
            try self.rename(source, to: target, replace: replace, volume: volume)
        }
    }

    @discardableResult
    public func copy(
        _ source: RemotePath, to target: RemotePath, replace: Replace = .yes, volume: String = ""
    ) async throws -> Entry {
        try await waiting {
            try self.copy(source, to: target, replace: replace, volume: volume)
        }
    }

    public func sync(volume: String = "") async throws {
        try await waiting { try self.sync(volume: volume) }
    }

    public func open(_ path: RemotePath, volume: String = "") async throws -> File {
        try await waiting { try self.open(path, volume: volume) }
    }

    public func create(
        _ path: RemotePath, options: WriteOptions = WriteOptions(), volume: String = ""
    ) async throws -> Upload {
        try await waiting { try self.create(path, options: options, volume: volume) }
    }
}

extension File {
    // There is no such `read`: a buffer of the caller's must not be left while somebody writes to it.
    public func map(at offset: UInt64 = 0, count: Int = .max) async throws -> Data {
        try await waiting { try self.map(at: offset, count: count) }
    }
}

extension Upload {
    public func write(_ bytes: Data, at offset: UInt64) async throws {
        try await waiting { try self.write(bytes, at: offset) }
    }

    @discardableResult
    public func commit() async throws -> Entry {
        try await waiting { try self.commit() }
    }

    public func abort() async throws {
        try await waiting { try self.abort() }
    }
}
