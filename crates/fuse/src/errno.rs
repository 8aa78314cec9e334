//! What a failure is called in errno(3). One exhaustive match, so that a new kind is a compile
//! error here.

use librorum_format::ErrorKind;

use crate::transport::Errno;

/// The errno of a kind.
#[must_use]
pub fn errno(kind: ErrorKind) -> Errno {
    use rustix::io::Errno as E;
    let errno = match kind {
        ErrorKind::NotFound => E::NOENT,
        ErrorKind::AlreadyExists => E::EXIST,
        ErrorKind::NotEmpty => E::NOTEMPTY,
        ErrorKind::NotDirectory => E::NOTDIR,
        ErrorKind::IsDirectory => E::ISDIR,
        ErrorKind::InvalidInput => E::INVAL,
        ErrorKind::NameTooLong => E::NAMETOOLONG,
        ErrorKind::NotPermitted => E::PERM,
        ErrorKind::ReadOnly => E::ROFS,
        ErrorKind::NoSpace => E::NOSPC,
        ErrorKind::TooManyLinks => E::MLINK,
        ErrorKind::TooLarge => E::FBIG,
        ErrorKind::OutOfRange => E::RANGE,
        ErrorKind::NoAttribute => E::NODATA,
        ErrorKind::NoSuchOffset => E::NXIO,
        ErrorKind::Unsupported => E::OPNOTSUPP,
        ErrorKind::Busy => E::BUSY,
        ErrorKind::Stale => E::STALE,
        // Never zeros, never stale bytes.
        ErrorKind::DataLoss => E::IO,
        // EAGAIN would make programs spin on a disk that is broken.
        ErrorKind::Unavailable => E::IO,
    };
    Errno(errno.raw_os_error())
}
