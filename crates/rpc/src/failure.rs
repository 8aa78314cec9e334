//! Why a call failed, the same on both sides of every transport.
//!
//! The one place where kinds of failure become status codes of gRPC and back.

use librorum_format::ErrorKind;

use crate::proto::v1;

/// What a caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The file system's answer, which the mount gives too.
    File(ErrorKind),
    /// The caller lacks a permission.
    AccessDenied,
    /// Nobody knows who the caller is.
    Unauthenticated,
    /// The caller withdrew the request, or went away.
    Cancelled,
    /// The request's time was up.
    DeadlineExceeded,
    /// Too much is under way; see [`Failure::retry_after_ms`].
    Overloaded,
    /// The other side does not know the operation.
    Unimplemented,
    /// The operation needs another state of things first, such as a closed descriptor.
    FailedPrecondition,
    /// The other side does not keep to the protocol.
    Protocol,
    /// The connection ended, or there was none.
    Disconnected,
    /// A mistake in the program on the other side.
    Internal,
}

/// Each reason with its name on the wire, its status code (`google.rpc.Code`) and its errno, 0 where
/// there is none.
const REASONS: &[(Reason, &str, u32, u32)] = &[
    (Reason::File(ErrorKind::NotFound), "NotFound", 5, 2),
    (Reason::File(ErrorKind::AlreadyExists), "AlreadyExists", 6, 17),
    (Reason::File(ErrorKind::NotEmpty), "NotEmpty", 9, 39),
    (Reason::File(ErrorKind::NotDirectory), "NotDirectory", 9, 20),
    (Reason::File(ErrorKind::IsDirectory), "IsDirectory", 9, 21),
    (Reason::File(ErrorKind::InvalidInput), "InvalidInput", 3, 22),
    (Reason::File(ErrorKind::NameTooLong), "NameTooLong", 3, 36),
    (Reason::File(ErrorKind::NotPermitted), "NotPermitted", 7, 1),
    (Reason::File(ErrorKind::ReadOnly), "ReadOnly", 9, 30),
    (Reason::File(ErrorKind::NoSpace), "NoSpace", 8, 28),
    (Reason::File(ErrorKind::TooManyLinks), "TooManyLinks", 9, 31),
    (Reason::File(ErrorKind::TooLarge), "TooLarge", 11, 27),
    (Reason::File(ErrorKind::OutOfRange), "OutOfRange", 11, 34),
    (Reason::File(ErrorKind::NoAttribute), "NoAttribute", 5, 61),
    (Reason::File(ErrorKind::NoSuchOffset), "NoSuchOffset", 11, 6),
    (Reason::File(ErrorKind::Unsupported), "Unsupported", 12, 95),
    (Reason::File(ErrorKind::Busy), "Busy", 10, 16),
    (Reason::File(ErrorKind::Stale), "Stale", 9, 116),
    (Reason::File(ErrorKind::DataLoss), "DataLoss", 15, 5),
    (Reason::File(ErrorKind::Unavailable), "Unavailable", 14, 5),
    (Reason::AccessDenied, "AccessDenied", 7, 13),
    (Reason::Unauthenticated, "Unauthenticated", 16, 0),
    (Reason::Cancelled, "Cancelled", 1, 0),
    (Reason::DeadlineExceeded, "DeadlineExceeded", 4, 0),
    (Reason::Overloaded, "Overloaded", 8, 0),
    (Reason::Unimplemented, "Unimplemented", 12, 0),
    (Reason::FailedPrecondition, "FailedPrecondition", 9, 0),
    (Reason::Protocol, "Protocol", 3, 0),
    (Reason::Disconnected, "Disconnected", 14, 0),
    (Reason::Internal, "Internal", 13, 0),
];

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the caller can do about it.
    pub reason: Reason,
    /// What, where, and what to do.
    pub message: String,
    /// When trying again makes sense; 0: now or never.
    pub retry_after_ms: u32,
}

impl Failure {
    /// A failure for this reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after_ms: 0 }
    }

    /// A failure of the file system.
    pub fn file(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::new(Reason::File(kind), message)
    }

    /// The status code (`google.rpc.Code`).
    #[must_use]
    pub fn code(&self) -> u32 {
        self.line().2
    }

    /// The errno that a mount would answer, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        i32::try_from(self.line().3).ok().filter(|&errno| errno != 0)
    }

    fn line(&self) -> &'static (Reason, &'static str, u32, u32) {
        match REASONS.iter().find(|line| line.0 == self.reason) {
            Some(line) => line,
            None => unreachable!("{:?} has a line: a test looks", self.reason),
        }
    }

    /// The message that carries it.
    #[must_use]
    pub fn to_message(&self) -> v1::Error {
        let &(_, kind, code, errno) = self.line();
        v1::Error {
            code,
            kind: kind.to_owned(),
            message: self.message.clone(),
            errno,
            retry_after_ms: self.retry_after_ms,
        }
    }

    /// What a message says. A kind that is not known, from a newer peer, is told by its code.
    #[must_use]
    pub fn from_message(error: &v1::Error) -> Self {
        let reason = REASONS
            .iter()
            .find(|line| line.1 == error.kind)
            .map_or_else(|| reason_of_code(error.code), |line| line.0);
        Self { reason, message: error.message.clone(), retry_after_ms: error.retry_after_ms }
    }
}

/// What a status code alone tells.
#[must_use]
pub fn reason_of_code(code: u32) -> Reason {
    match code {
        1 => Reason::Cancelled,
        3 => Reason::File(ErrorKind::InvalidInput),
        4 => Reason::DeadlineExceeded,
        5 => Reason::File(ErrorKind::NotFound),
        6 => Reason::File(ErrorKind::AlreadyExists),
        7 => Reason::AccessDenied,
        8 => Reason::Overloaded,
        9 => Reason::FailedPrecondition,
        10 => Reason::File(ErrorKind::Busy),
        11 => Reason::File(ErrorKind::OutOfRange),
        12 => Reason::Unimplemented,
        14 => Reason::Disconnected,
        15 => Reason::File(ErrorKind::DataLoss),
        16 => Reason::Unauthenticated,
        _ => Reason::Internal,
    }
}

/// The key of gRPC's trailing metadata that carries an encoded [`v1::Error`].
#[cfg(feature = "grpc")]
pub const ERROR_KEY: &str = "librorum-error-bin";

#[cfg(feature = "grpc")]
impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        use prost::Message;
        let message = failure.to_message();
        let code = tonic::Code::from_i32(i32::try_from(message.code).unwrap_or(2));
        let mut metadata = tonic::metadata::MetadataMap::new();
        let value = tonic::metadata::MetadataValue::from_bytes(&message.encode_to_vec());
        metadata.insert_bin(ERROR_KEY, value);
        Self::with_metadata(code, failure.message, metadata)
    }
}

#[cfg(feature = "grpc")]
impl From<&tonic::Status> for Failure {
    fn from(status: &tonic::Status) -> Self {
        use prost::Message;
        let carried = status
            .metadata()
            .get_bin(ERROR_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| v1::Error::decode(bytes).ok());
        match carried {
            Some(error) => Self::from_message(&error),
            None => {
                let code = u32::try_from(i32::from(status.code())).unwrap_or(2);
                Self::new(reason_of_code(code), status.message())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &(reason, name, code, _) in REASONS {
            let failure = Failure { reason, message: "why".into(), retry_after_ms: 7 };
            let message = failure.to_message();
            assert_eq!((message.kind.as_str(), message.code), (name, code));
            assert_eq!(Failure::from_message(&message), failure);
            #[cfg(feature = "grpc")]
            assert_eq!(Failure::from(&tonic::Status::from(failure.clone())), failure);
        }
    }

    #[test]
    fn a_kind_of_a_newer_peer_is_told_by_its_code() {
        let message = v1::Error { code: 5, kind: "Vanished".into(), ..v1::Error::default() };
        assert_eq!(Failure::from_message(&message).reason, Reason::File(ErrorKind::NotFound));
    }
}
