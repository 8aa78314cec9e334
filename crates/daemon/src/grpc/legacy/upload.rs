//! `UploadFile`: a file appears whole or not at all.
//!
//! The bytes go into a file without a name as they come. Only when the stream has ended, the length and the
//! checksum are what the client said, and the name is free (or may be replaced), does it get its name; in
//! every other case the nameless file vanishes.

use std::sync::Arc;

use bytes::Bytes;
use librorum_format::{ErrorKind, Ino};
use librorum_meta::XattrMode;
use librorum_rpc::proto::{file, v1};
use librorum_rpc::{Failure, Reason};
use tonic::{Request, Response, Status, Streaming};

use super::info::{
    Describer, Detail, MIME_ATTRIBUTE, absolute, hexadecimal, invalid, join, signed,
};
use super::mime;
use crate::grpc::call::{Context, Inner, Shared, Ticket, Weight, deadline_exceeded};
use crate::service::{Call, Upload};

pub(super) async fn upload(
    shared: &Shared,
    request: Request<Streaming<file::UploadFileRequest>>,
) -> Result<Response<file::UploadFileResponse>, Status> {
    let context = Context::of(&request)?;
    let mut ticket = shared.begin(context, "UploadFile", Bytes::new(), Weight::Stream)?;
    let done = receive(shared, &mut ticket, request.into_inner()).await;
    ticket.settle(done).map(Response::new)
}

/// An upload that is given up unless it is published.
struct Pending {
    shared: Shared,
    upload: Arc<Upload>,
    is_published: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        let (shared, id) = (self.shared.clone(), self.upload.id);
        let give_up = move || shared.service.close_uploads(&[id]);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(give_up)),
            Err(_outside) => give_up(),
        }
    }
}

async fn next(
    ticket: &Ticket,
    stream: &mut Streaming<file::UploadFileRequest>,
) -> Result<Option<file::upload_file_request::Data>, Failure> {
    let message = match ticket.context().deadline {
        None => stream.message().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, stream.message()).await {
            Ok(message) => message,
            Err(_elapsed) => return Err(deadline_exceeded()),
        },
    };
    match message {
        Ok(None) => Ok(None),
        Ok(Some(message)) => match message.data {
            Some(data) => Ok(Some(data)),
            None => {
                Err(Failure::new(Reason::Protocol, "a message with neither metadata nor bytes"))
            }
        },
        Err(status) => Err(Failure::from(&status)),
    }
}

async fn receive(
    shared: &Shared,
    ticket: &mut Ticket,
    mut stream: Streaming<file::UploadFileRequest>,
) -> Result<file::UploadFileResponse, Failure> {
    use file::upload_file_request::Data;
    let Some(Data::Metadata(metadata)) = next(ticket, &mut stream).await? else {
        return Err(Failure::new(Reason::Protocol, "the first message must be the metadata"));
    };
    let plan = {
        let shared = shared.clone();
        ticket.work(move |call| Plan::new(&shared, call, metadata)).await?
    };
    ticket.set_path(plan.path.clone().into());
    let opened = {
        let (shared, request) = (shared.clone(), plan.open_request());
        ticket.work(move |call| shared.service.open_write(call, &request)).await?
    };
    let mut pending = Pending { shared: shared.clone(), upload: opened, is_published: false };
    let mut hashes = Hashes::new(&plan.expected);
    let mut len = 0;
    while let Some(data) = next(ticket, &mut stream).await? {
        let Data::Chunk(bytes) = data else {
            return Err(Failure::new(Reason::Protocol, "metadata comes once, and first"));
        };
        let offset = len;
        len += bytes.len() as u64;
        if plan.size != 0 && len > plan.size {
            return Err(plan.wrong_size(len));
        }
        ticket.count_bytes(bytes.len());
        let upload = Arc::clone(&pending.upload);
        hashes = ticket
            .work(move |_call| {
                upload.write_at(offset, &bytes)?;
                hashes.update(&bytes);
                Ok(hashes)
            })
            .await?;
    }
    if plan.size != 0 && len != plan.size {
        return Err(plan.wrong_size(len));
    }
    let hash = hashes.finish(&plan)?;
    let published = {
        let (shared, upload) = (shared.clone(), pending.upload.id);
        ticket.work(move |call| plan.publish(&shared, call, upload, len, hash)).await
    };
    // A deadline may pass while the file gets its name; closing an upload that is over does nothing.
    pending.is_published = published.is_ok();
    published
}

/// What a client says about the file that it is going to send.
struct Plan {
    path: Vec<u8>,
    /// 0: not known.
    size: u64,
    expected: Option<Expected>,
    overwrite: bool,
    /// If it says something else than the name.
    mime_type: Option<String>,
}

/// The checksum that the content must have. Both kinds have 64 digits; without a prefix, either will do.
struct Expected {
    digits: String,
    is_blake3: bool,
    is_sha256: bool,
}

impl Expected {
    fn parse(given: &str) -> Result<Option<Self>, Failure> {
        if given.is_empty() {
            return Ok(None);
        }
        let (digits, is_blake3, is_sha256) = if let Some(digits) = given.strip_prefix("blake3:") {
            (digits, true, false)
        } else if let Some(digits) = given.strip_prefix("sha256:") {
            (digits, false, true)
        } else {
            (given, true, true)
        };
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid(
                "the checksum must be the BLAKE3 or SHA-256 of the content, 64 hexadecimal digits",
            ));
        }
        Ok(Some(Self { digits: digits.to_ascii_lowercase(), is_blake3, is_sha256 }))
    }
}

impl Plan {
    fn new(
        shared: &Inner,
        call: &Call,
        metadata: file::UploadFileMetadata,
    ) -> Result<Self, Failure> {
        let unsupported = |message| Err(Failure::file(ErrorKind::Unsupported, message));
        if metadata.encrypt {
            return unsupported("the volume is not encrypted: send encrypt=false");
        }
        if metadata.compress {
            return unsupported("the volume decides what it compresses: send compress=false");
        }
        let size = u64::try_from(metadata.size)
            .map_err(|_negative| invalid("the size cannot be less than zero"))?;
        let expected = Expected::parse(&metadata.checksum)?;
        let describer = Describer::new(shared, call)?;
        let path = destination(&describer, &metadata)?;
        let taken_by = match describer.stat(&path) {
            Ok(found) => Some(found),
            Err(failure) if failure.reason == Reason::File(ErrorKind::NotFound) => None,
            Err(failure) => return Err(failure),
        };
        // Said before the bytes are sent; what counts is what is true when they are there.
        if taken_by.is_some() && !metadata.overwrite {
            let message = format!("{} exists already: send overwrite=true", absolute(&path));
            return Err(Failure::file(ErrorKind::AlreadyExists, message));
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let by_name = mime::of_name(&String::from_utf8_lossy(name));
        let given = metadata.mime_type;
        if given.len() > 255 {
            return Err(invalid("a MIME type has at most 255 characters"));
        }
        let mime_type = (!given.is_empty() && given != by_name).then_some(given);
        Ok(Self { path, size, expected, overwrite: metadata.overwrite, mime_type })
    }

    fn open_request(&self) -> v1::OpenWriteRequest {
        v1::OpenWriteRequest {
            path: self.path.clone().into(),
            size_hint: self.size,
            want: v1::Transport::Grpc.into(),
            ..v1::OpenWriteRequest::default()
        }
    }

    fn wrong_size(&self, len: u64) -> Failure {
        let what = if len > self.size { "more than" } else { "not" };
        invalid(format!(
            "{}: {len} bytes came, {what} the {} that were announced; nothing was written",
            absolute(&self.path),
            self.size
        ))
    }

    fn publish(
        &self,
        shared: &Inner,
        call: &Call,
        upload: u64,
        len: u64,
        hash: blake3::Hash,
    ) -> Result<file::UploadFileResponse, Failure> {
        let replace = if self.overwrite { v1::Replace::Yes } else { v1::Replace::No };
        let request = v1::CommitRequest {
            upload,
            path: self.path.clone().into(),
            len,
            replace: replace.into(),
            ..v1::CommitRequest::default()
        };
        let entry = shared.service.commit(call, &request)?.entry.unwrap_or_default();
        let describer = Describer::new(shared, call)?;
        let mut message = format!("{} has {len} bytes", absolute(&self.path));
        if let Some(mime_type) = &self.mime_type {
            let (ino, value) = (Ino(entry.ino), mime_type.as_bytes());
            if let Err(error) =
                describer.volume.fs.set_xattr(ino, MIME_ATTRIBUTE, value, XattrMode::Set)
            {
                tracing::warn!(%error, "a MIME type was not kept");
                message.push_str(&format!("; its MIME type could not be kept: {error}"));
            }
        }
        let mut info = describer.info(&self.path, &entry, Detail::ChunkCount)?;
        // Every byte went through our hands.
        info.checksum = hash.to_string();
        Ok(file::UploadFileResponse {
            success: true,
            message,
            file_info: Some(info),
            bytes_uploaded: signed(len),
        })
    }
}

/// Where the file is to be: `path` is a directory, or the whole path if it ends in the name, unless a
/// directory has that path.
fn destination(
    describer: &Describer<'_>,
    metadata: &file::UploadFileMetadata,
) -> Result<Vec<u8>, Failure> {
    let (path, name) = (metadata.path.as_str(), metadata.name.as_str());
    if name.contains('/') {
        return Err(invalid(format!("'{name}' is no name: it has a '/'")));
    }
    if name.is_empty() {
        if path.trim_matches('/').is_empty() {
            return Err(invalid("the file needs a name"));
        }
        return Ok(path.as_bytes().to_vec());
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    let is_directory = || match describer.stat(path.as_bytes()) {
        Ok(found) => Ok(found.kind() == v1::Kind::Directory),
        Err(failure) if failure.reason == Reason::File(ErrorKind::NotFound) => Ok(false),
        Err(failure) => Err(failure),
    };
    if last == name && !is_directory()? {
        return Ok(path.as_bytes().to_vec());
    }
    Ok(join(path.as_bytes(), name.as_bytes()))
}

/// Of what has come so far.
struct Hashes {
    blake3: blake3::Hasher,
    sha256: Option<ring::digest::Context>,
}

impl Hashes {
    fn new(expected: &Option<Expected>) -> Self {
        let wants_sha256 = expected.as_ref().is_some_and(|expected| expected.is_sha256);
        Self {
            blake3: blake3::Hasher::new(),
            sha256: wants_sha256.then(|| ring::digest::Context::new(&ring::digest::SHA256)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.blake3.update(bytes);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
    }

    fn finish(self, plan: &Plan) -> Result<blake3::Hash, Failure> {
        let blake3 = self.blake3.finalize();
        let Some(expected) = &plan.expected else { return Ok(blake3) };
        let sha256 = self.sha256.map(|context| hexadecimal(context.finish().as_ref()));
        if expected.is_blake3 && expected.digits == blake3.to_string()
            || sha256.as_ref() == Some(&expected.digits)
        {
            return Ok(blake3);
        }
        let message = format!(
            "{}: the content that came has BLAKE3 {blake3}{}, not checksum {}; nothing was written",
            absolute(&plan.path),
            sha256.map(|sha256| format!(" and SHA-256 {sha256}")).unwrap_or_default(),
            expected.digits
        );
        Err(Failure::file(ErrorKind::DataLoss, message))
    }
}
