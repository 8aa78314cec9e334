//! `file.FileService`, but for the bytes: uploads are in [`super::upload`], downloads in
//! [`crate::grpc::bulk`].

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::{file, v1};
use tonic::{Request, Response, Status, Streaming};

use super::info::{Describer, Detail, absolute, invalid, join, signed};
use super::{sync, upload};
use crate::grpc::call::{Inner, Shared};
use crate::grpc::files::in_front;
use crate::service::{Call, OpenFile};

/// An answer is one message: more entries than this would not fit it.
const ENTRIES_MAX: usize = 50_000;

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::grpc) struct FileService(pub(in crate::grpc) Shared);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl file::file_service_server::FileService for FileService {
    async fn list_files(
        &self,
        request: Request<file::ListFilesRequest>,
    ) -> Answer<file::ListFilesResponse> {
        self.0.unary(request, "ListFiles", |request| text(&request.path), list).await
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<file::UploadFileRequest>>,
    ) -> Answer<file::UploadFileResponse> {
        upload::upload(&self.0, request).await
    }

    type DownloadFileStream = tokio_stream::Empty<Result<file::DownloadFileResponse, Status>>;

    async fn download_file(
        &self,
        _request: Request<file::DownloadFileRequest>,
    ) -> Answer<Self::DownloadFileStream> {
        Err(in_front())
    }

    async fn delete_file(
        &self,
        request: Request<file::DeleteFileRequest>,
    ) -> Answer<file::DeleteFileResponse> {
        self.0.unary(request, "DeleteFile", |request| text(&request.path), delete).await
    }

    async fn create_directory(
        &self,
        request: Request<file::CreateDirectoryRequest>,
    ) -> Answer<file::CreateDirectoryResponse> {
        self.0
            .unary(request, "CreateDirectory", |request| text(&request.path), create_directory)
            .await
    }

    async fn get_file_info(
        &self,
        request: Request<file::GetFileInfoRequest>,
    ) -> Answer<file::FileInfo> {
        self.0.unary(request, "GetFileInfo", |request| text(&request.path), file_info).await
    }

    async fn get_sync_status(
        &self,
        request: Request<file::GetSyncStatusRequest>,
    ) -> Answer<file::SyncStatusResponse> {
        self.0.unary(request, "GetSyncStatus", |request| text(&request.path), sync::status).await
    }
}

fn text(path: &str) -> Bytes {
    Bytes::copy_from_slice(path.as_bytes())
}

fn list(
    shared: &Inner,
    call: &Call,
    request: &file::ListFilesRequest,
) -> Result<file::ListFilesResponse, Failure> {
    let describer = Describer::new(shared, call)?;
    let path = request.path.as_bytes();
    let mut answer = file::ListFilesResponse {
        current_path: absolute(path),
        ..file::ListFilesResponse::default()
    };
    let errors = describer.walk(path, request.recursive, &mut |entry| {
        let is_hidden = entry.path.split(|&byte| byte == b'/').any(|name| name.starts_with(b"."));
        if is_hidden && !request.include_hidden {
            return Ok(true);
        }
        if answer.files.len() == ENTRIES_MAX {
            let message = format!(
                "there are more than {ENTRIES_MAX} entries, which one answer does not hold: list \
                 directory by directory, or use librorum.v1.Files/List"
            );
            return Err(Failure::file(ErrorKind::OutOfRange, message));
        }
        let info = describer.info(&join(path, &entry.path), &entry, Detail::Entry)?;
        if entry.kind() == v1::Kind::Regular {
            answer.total_size = answer.total_size.saturating_add(info.size);
        }
        answer.files.push(info);
        Ok(true)
    })?;
    // The answer has no place for what is missing, so nothing may be.
    if let Some(error) = errors.first() {
        return Err(told(error));
    }
    answer.total_count = i32::try_from(answer.files.len()).unwrap_or(i32::MAX);
    Ok(answer)
}

fn told(error: &v1::PathError) -> Failure {
    let mut failure = Failure::from_message(&error.error.clone().unwrap_or_default());
    failure.message = format!("{}: {}", absolute(&error.path), failure.message);
    failure
}

fn delete(
    shared: &Inner,
    call: &Call,
    request: &file::DeleteFileRequest,
) -> Result<file::DeleteFileResponse, Failure> {
    let describer = Describer::new(shared, call)?;
    let found = describer.target(&request.file_id, &request.path);
    let (path, entry) = match found {
        Err(failure)
            if request.force
                && failure.reason == librorum_rpc::Reason::File(ErrorKind::NotFound) =>
        {
            return Ok(file::DeleteFileResponse {
                success: true,
                message: "it was not there".to_owned(),
                deleted_count: 0,
            });
        }
        found => found?,
    };
    let has_other_names = entry.nlink > 1 && entry.kind() != v1::Kind::Directory;
    if request.path.is_empty() && has_other_names {
        let message = format!(
            "file {} has {} names: give the path of the one that is to go",
            request.file_id, entry.nlink
        );
        return Err(Failure::new(librorum_rpc::Reason::FailedPrecondition, message));
    }
    let removal = v1::RemoveRequest {
        path: path.clone().into(),
        recursive: request.recursive,
        missing_ok: request.force,
        ..v1::RemoveRequest::default()
    };
    let removed = shared.service.remove(call, &removal)?;
    let deleted_count = i32::try_from(removed.removed_count).unwrap_or(i32::MAX);
    Ok(match removed.errors.first() {
        None => file::DeleteFileResponse {
            success: true,
            message: format!("{} is gone", absolute(&path)),
            deleted_count,
        },
        Some(error) => file::DeleteFileResponse {
            success: false,
            message: format!(
                "{} could not be removed, the first of them: {}",
                removed.errors.len(),
                told(error).message
            ),
            deleted_count,
        },
    })
}

fn create_directory(
    shared: &Inner,
    call: &Call,
    request: &file::CreateDirectoryRequest,
) -> Result<file::CreateDirectoryResponse, Failure> {
    let describer = Describer::new(shared, call)?;
    let path = request.path.as_bytes();
    let mode = match &request.permissions {
        None => 0,
        Some(wanted) => directory_mode(&describer, wanted)?,
    };
    let made = shared.service.make_directory(
        call,
        &v1::MakeDirectoryRequest {
            path: path.to_vec().into(),
            mode,
            parents: request.create_parents,
            ..v1::MakeDirectoryRequest::default()
        },
    )?;
    let entry = made.entry.unwrap_or_default();
    Ok(file::CreateDirectoryResponse {
        success: true,
        message: format!("{} is there", absolute(path)),
        directory_info: Some(describer.info(path, &entry, Detail::Entry)?),
    })
}

/// What a client wants of a new directory. A new one belongs to its maker; whoever asks for anything else
/// is told so.
fn directory_mode(
    describer: &Describer<'_>,
    wanted: &file::FilePermissions,
) -> Result<u32, Failure> {
    if !describer.is_own(&wanted.owner, &wanted.group) {
        let message = "a new directory belongs to who makes it: leave owner and group empty, and change \
                       them afterwards";
        return Err(Failure::file(ErrorKind::Unsupported, message));
    }
    let mode = u32::try_from(wanted.mode)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| invalid(format!("{:o} is no mode: 0 to 7777", wanted.mode)))?;
    // The flags follow from the mode; one that does not is a wish that nobody would fulfil.
    let owner_bits = if mode == 0 { 7 } else { mode >> 6 };
    let flags = [(wanted.readable, 4), (wanted.writable, 2), (wanted.executable, 1)];
    if flags.iter().any(|&(wanted, bit)| wanted && owner_bits & bit == 0) {
        let message = format!("mode {mode:o} does not grant its owner what the flags say");
        return Err(invalid(message));
    }
    Ok(mode)
}

fn file_info(
    shared: &Inner,
    call: &Call,
    request: &file::GetFileInfoRequest,
) -> Result<file::FileInfo, Failure> {
    let describer = Describer::new(shared, call)?;
    let (path, entry) = describer.target(&request.file_id, &request.path)?;
    let detail = if request.include_chunks { Detail::ChunkIds } else { Detail::ChunkCount };
    describer.info(&path, &entry, detail)
}

/// A download that has begun.
pub(in crate::grpc) struct Download {
    pub(in crate::grpc) file: OpenFile,
    pub(in crate::grpc) info: file::FileInfo,
    pub(in crate::grpc) range: std::ops::Range<u64>,
}

pub(in crate::grpc) fn open_download(
    shared: &Inner,
    call: &Call,
    request: &file::DownloadFileRequest,
) -> Result<Download, Failure> {
    let negative = |_negative| invalid("offset and length cannot be less than zero");
    let offset = u64::try_from(request.offset).map_err(negative)?;
    let length = u64::try_from(request.length).map_err(negative)?;
    let describer = Describer::new(shared, call)?;
    let (path, entry) = describer.target(&request.file_id, &request.path)?;
    let file = shared.service.open_read(call, "", &path, 0)?;
    if !request.file_id.is_empty() && file.entry().ino != entry.ino {
        let message = format!("file {} has just been replaced", request.file_id);
        return Err(Failure::file(ErrorKind::NotFound, message));
    }
    let size_bytes = file.entry().size_bytes;
    if offset > size_bytes {
        let message =
            format!("offset {offset} is behind the end of {}: {size_bytes}", absolute(&path));
        return Err(Failure::file(ErrorKind::OutOfRange, message));
    }
    let end = if length == 0 { size_bytes } else { offset.saturating_add(length).min(size_bytes) };
    let info = describer.info(&path, file.entry(), Detail::ChunkCount)?;
    debug_assert_eq!(info.size, signed(size_bytes));
    Ok(Download { file, info, range: offset..end })
}
