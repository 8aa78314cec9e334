import CLibrorum

/// Why a call failed.
public struct LibrorumError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A code of gRPC.
    public let code: Int32
    /// The finer reason, such as "NotFound" or "Disconnected".
    public let kind: String
    /// What, where, and what to do.
    public let message: String
    /// The errno that a mount would answer, by Linux's numbers, if there is one.
    public let errno: Int32?
    /// When trying again makes sense; `nil`: now or never.
    public let retryAfterMilliseconds: UInt32?

    public var description: String { "\(kind): \(message)" }

    /// What the library keeps of the last failure on this thread. The caller has not left the thread, nor
    /// called anything else, since the call that answered `code`.
    static func last(_ code: Int32) -> LibrorumError {
        // Never NULL, and valid until the next failure on this thread: copied here.
        let last = lb_last_error().pointee
        return LibrorumError(
            code: code,
            kind: String(cString: last.kind),
            message: String(cString: last.message),
            errno: last.os_errno == 0 ? nil : last.os_errno,
            retryAfterMilliseconds: last.retry_after_ms == 0 ? nil : last.retry_after_ms
        )
    }

    static func invalidArgument(_ message: String) -> LibrorumError {
        LibrorumError(
            code: LB_INVALID_ARGUMENT, kind: "InvalidInput", message: message, errno: 22,
            retryAfterMilliseconds: nil)
    }
}

/// Throws what a call of the library says.
func check(_ code: Int32) throws {
    guard code == LB_OK else { throw LibrorumError.last(code) }
}
