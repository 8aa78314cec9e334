import GRPCCore
import SwiftProtobuf

/// Why a call failed.
public struct RemoteError: Error, Sendable, CustomStringConvertible {
    public let code: RPCError.Code
    /// The finer reason, such as "NotFound"; empty if it does not come from the daemon.
    public let kind: String
    /// What, where, and what to do.
    public let message: String
    /// The errno that a mount would answer, by Linux's numbers, if there is one.
    public let errno: UInt32?
    /// When trying again makes sense; `nil`: now or never.
    public let retryAfterMilliseconds: UInt32?

    public var description: String { "\(kind.isEmpty ? "\(code)" : kind): \(message)" }

    /// The daemon sends its own error along, as an encoded message.
    init(_ error: RPCError) {
        code = error.code
        for bytes in error.metadata[binaryValues: "librorum-error-bin"] {
            guard let carried = try? Librorum_V1_Error(serializedBytes: bytes) else { continue }
            kind = carried.kind
            message = carried.message
            errno = carried.errno == 0 ? nil : carried.errno
            retryAfterMilliseconds = carried.retryAfterMs == 0 ? nil : carried.retryAfterMs
            return
        }
        kind = ""
        message = error.message
        errno = nil
        retryAfterMilliseconds = nil
    }
}
