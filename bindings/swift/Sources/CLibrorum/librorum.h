// The librorum client in C. Written by cbindgen from bindings/c/src; README.md there has an example.
//
// What holds for all functions:
//
// - They answer LB_OK (0), a code of gRPC, or LB_END; lb_last_error says more. Where an answer fails,
//   what it would have filled is not to be looked at, but for what its comment says.
// - Clients, files, uploads, listings and mappings are numbers. One that was closed, or is of another
//   kind, is never used again: to close it twice answers LB_INVALID_ARGUMENT and does nothing else.
// - A pointer is either NULL, where the comment allows it, or to memory that is large enough and aligned
//   and stays as it is until the call ends. Texts end with a zero byte. Paths are bytes: components
//   separated by '/', the empty text for the root; none may be empty, "." or "..". A volume of NULL or ""
//   is the daemon's only or first one.
// - All may be called by any thread. Over gRPC not from within a runtime of Rust's tokio.
// - On the files of a daemon the library does what the comment says and nothing else: it starts one
//   thread for each client, and handles no signals.

#ifndef LIBRORUM_H
#define LIBRORUM_H

#include <stddef.h>
#include <stdint.h>

// Success. The other codes are those of gRPC (`google.rpc.Code`).
#define LB_OK 0

// The call was withdrawn.
#define LB_CANCELLED 1

// The other side failed in a way that has no code of its own.
#define LB_UNKNOWN 2

// An argument is wrong, or a number belongs to no open object.
#define LB_INVALID_ARGUMENT 3

// The call's time was up.
#define LB_DEADLINE_EXCEEDED 4

// There is no such thing.
#define LB_NOT_FOUND 5

// The name is taken.
#define LB_ALREADY_EXISTS 6

// The user may not.
#define LB_PERMISSION_DENIED 7

// Too much is under way or stored already; see `retry_after_ms`.
#define LB_RESOURCE_EXHAUSTED 8

// Something else has to happen first; `kind` says more.
#define LB_FAILED_PRECONDITION 9

// Somebody else is at it.
#define LB_ABORTED 10

// Beyond a limit, or a buffer is too short.
#define LB_OUT_OF_RANGE 11

// Not an operation that the daemon knows.
#define LB_UNIMPLEMENTED 12

// A mistake in this library or the daemon.
#define LB_INTERNAL 13

// The daemon or a disk cannot be reached.
#define LB_UNAVAILABLE 14

// Stored bytes are lost.
#define LB_DATA_LOSS 15

// The daemon does not know who asks.
#define LB_UNAUTHENTICATED 16

// The end of a listing. It is no failure, and changes nothing about the last one.
#define LB_END -1

// What `lb_abi_version` answers if the header fits the library.
#define LB_ABI_VERSION 65536

// Ways for bytes, to be forbidden: descriptors of the daemon.
#define LB_TRANSPORT_FD 1

// Shared memory.
#define LB_TRANSPORT_ARENA 2

// Frames of the socket.
#define LB_TRANSPORT_INLINE 4

// What `kind` of an entry says: something that this version does not know.
#define LB_KIND_UNKNOWN 0

// A regular file.
#define LB_KIND_REGULAR 1

// A directory.
#define LB_KIND_DIRECTORY 2

// A symbolic link.
#define LB_KIND_SYMLINK 3

// A block device.
#define LB_KIND_BLOCK_DEVICE 4

// A character device.
#define LB_KIND_CHAR_DEVICE 5

// A named pipe.
#define LB_KIND_FIFO 6

// A socket.
#define LB_KIND_SOCKET 7

// What has the name already is replaced.
#define LB_REPLACE_YES 0

// What has the name already stays, and the operation fails.
#define LB_REPLACE_NO 1

// Both names are exchanged; of renames only.
#define LB_REPLACE_EXCHANGE 2

// Of `lb_connect_options.flags`: `expected_uid` is to be looked at.
#define LB_CONNECT_EXPECTED_UID 1

// Of `lb_write_options.flags`: the commit ends when the file would survive a power cut.
#define LB_WRITE_DURABLE 1

// Of `lb_write_options.flags`: `mtime` is to be looked at.
#define LB_WRITE_MTIME 2

// Of `lb_list`: depth first, a directory before what is in it.
#define LB_LIST_RECURSIVE 1

// Of `lb_mkdir`: make what lacks on the way; what is there is no error.
#define LB_MKDIR_PARENTS 1

// Of `lb_remove`: with all that is in it.
#define LB_REMOVE_RECURSIVE 1

// Of `lb_remove`: that it is not there is no error.
#define LB_REMOVE_MISSING_OK 2

// Of `lb_remove`: as rmdir(2), only an empty directory.
#define LB_REMOVE_DIRECTORY 4

// What the last failure on a thread was.
typedef struct {
  // What the failed call answered; `LB_OK` if none has failed.
  int32_t code;
  // The errno that a mount would answer, by Linux's numbers; 0 where there is none.
  int32_t os_errno;
  // When trying again makes sense, in milliseconds; 0: now or never.
  uint32_t retry_after_ms;
  // The finer reason, such as "NotFound" or "Disconnected".
  const char *kind;
  // What, where, and what to do, in UTF-8.
  const char *message;
} lb_error;

// How to connect. Filled by `lb_connect_options_init`, then changed.
typedef struct {
  // How long this is; set by the init function.
  size_t struct_size;
  // Program and version, for the daemon's log.
  const char *name;
  // What the daemon asks for beside the user; `token_len` bytes.
  const void *token;
  // See `token`.
  size_t token_len;
  // `LB_CONNECT_`...
  uint32_t flags;
  // A user, beside root and this process's, whose daemon is trusted.
  uint32_t expected_uid;
  // `LB_TRANSPORT_`... that bytes must not take.
  uint32_t forbid;
  // How long to wait for a connection.
  uint32_t connect_timeout_ms;
  // How long to try again what can be tried again; 0: not at all.
  uint32_t retry_for_ms;
  // How long each call may take, with all tries; 0: as long as it takes.
  uint32_t deadline_ms;
  // Of https: certificates of the authorities to believe, in PEM; those of the machine if NULL.
  const char *tls_authorities;
  // Of https: this program's certificate in PEM, or NULL.
  const char *tls_certificate;
  // The certificate's key in PEM, or NULL.
  const char *tls_key;
  // Of https: the name in the daemon's certificate, if it is not the address's.
  const char *tls_server_name;
} lb_connect_options;

// A connection to a daemon. 0 is none.
typedef uint64_t lb_client;

// A moment.
typedef struct {
  // Seconds since 1970.
  int64_t seconds;
  // Nanoseconds in the second.
  uint32_t nanos;
  // Zero.
  uint32_t reserved;
} lb_time;

// What a name stands for.
typedef struct {
  // Its number in the volume.
  uint64_t ino;
  // `LB_KIND_`...
  uint32_t kind;
  // The low 12 bits of `st_mode`.
  uint32_t mode;
  // How many names it has.
  uint32_t nlink;
  // Its user.
  uint32_t uid;
  // Its group.
  uint32_t gid;
  // The number of a device.
  uint32_t rdev;
  // How long it is.
  uint64_t size_bytes;
  // How much of the disk it takes.
  uint64_t allocated_bytes;
  // Changes whenever the content does.
  uint64_t content_version;
  // When it was read last.
  lb_time atime;
  // When its content changed last.
  lb_time mtime;
  // When anything about it changed last.
  lb_time ctime;
  // When it was made.
  lb_time btime;
} lb_entry;

// A directory that is being listed. 0 is none.
typedef uint64_t lb_listing;

// A file that is open for reading. 0 is none.
typedef uint64_t lb_file;

// Bytes of a file, seen in place. 0 is none.
typedef uint64_t lb_mapping;

// How a file is to be written. Filled by `lb_write_options_init`, then changed.
typedef struct {
  // How long this is; set by the init function.
  size_t struct_size;
  // How long the file will be; 0 if that is not known. It need not be right.
  uint64_t size_hint;
  // Its permissions.
  uint32_t mode;
  // `LB_REPLACE_`...
  uint32_t replace;
  // `LB_WRITE_`...
  uint32_t flags;
  // Zero.
  uint32_t reserved;
  // Its time of modification, with `LB_WRITE_MTIME`; else the time of the commit.
  lb_time mtime;
  // 16 bytes by which the upload is found again after a lost connection, or NULL.
  const void *key;
  // What the content has to be, by its BLAKE3 of 32 bytes, or NULL.
  const void *blake3;
} lb_write_options;

// A file that is being written. 0 is none.
typedef uint64_t lb_upload;

// Bytes from `start` to before `end`.
typedef struct {
  // The first.
  uint64_t start;
  // The one after the last.
  uint64_t end;
} lb_range;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What the last failure of a call on this thread was; never NULL. It and its texts are valid until the
// next call on this thread that fails, or the thread's end. A call that succeeds leaves it as it is.
//
// Any thread; each has its own.
const lb_error *lb_last_error(void);

// The version of this interface: the upper 16 bits change when a program has to be changed or compiled
// anew, the lower ones when something is added. Compare with `LB_ABI_VERSION`.
//
// Any thread.
uint32_t lb_abi_version(void);

// The version of the library, such as "0.1.0".
//
// Any thread.
const char *lb_version(void);

// Fills options with what they are if nothing is said.
//
// Any thread.
int32_t lb_connect_options_init(lb_connect_options *options);

// Connects to a daemon, by the path of its socket, or by an address of gRPC: `http://host:port`,
// `https://host:port`, or `unix:/path`. `options` may be NULL. The client is closed with
// `lb_disconnect`.
//
// Any thread; the client may be used by any number of threads at a time. After fork(2) the child
// connects by itself.
int32_t lb_connect(const char *target, const lb_connect_options *options, lb_client *client);

// Speaks over a Unix stream socket that is connected to a daemon already. The descriptor belongs to the
// library from here on, also if this fails, unless `client` or the options are wrong.
//
// Any thread.
int32_t lb_connect_fd(int fd,
                      const lb_connect_options *options,
                      lb_client *client);

// Closes a client. What was opened with it goes on until it is closed, too.
//
// Any thread, also while others use the client: their calls end as if it was open.
int32_t lb_disconnect(lb_client client);

// What a name stands for. `volume` may be NULL: the daemon's only or first one.
//
// Any thread.
int32_t lb_stat(lb_client client, const char *volume, const char *path, lb_entry *entry);

// Where a symbolic link leads, with a zero byte behind. `target_len` is how long it is, without that
// byte, also if the answer is `LB_OUT_OF_RANGE` because the buffer is too short.
//
// Any thread.
int32_t lb_read_link(lb_client client,
                     const char *volume,
                     const char *path,
                     char *target,
                     size_t target_size,
                     size_t *target_len);

// Makes a directory. `entry` may be NULL.
//
// Any thread.
int32_t lb_mkdir(lb_client client,
                 const char *volume,
                 const char *path,
                 uint32_t mode,
                 uint32_t flags,
                 lb_entry *entry);

// Makes a symbolic link that leads to `target`. `entry` may be NULL.
//
// Any thread.
int32_t lb_symlink(lb_client client,
                   const char *volume,
                   const char *path,
                   const char *target,
                   lb_entry *entry);

// Removes a file, or with `LB_REMOVE_`... a directory. `removed_count` may be NULL. In a recursive removal what could not be
// removed fails it at the end; the rest is gone.
//
// Any thread.
int32_t lb_remove(lb_client client,
                  const char *volume,
                  const char *path,
                  uint32_t flags,
                  uint64_t *removed_count);

// Renames, or exchanges two names. `entry`, what `to` is now, may be NULL.
//
// Any thread.
int32_t lb_rename(lb_client client,
                  const char *volume,
                  const char *from,
                  const char *to,
                  uint32_t replace,
                  lb_entry *entry);

// Copies a file or a symbolic link without moving its bytes. `entry`, what `to` is now, may be NULL.
//
// Any thread.
int32_t lb_copy(lb_client client,
                const char *volume,
                const char *from,
                const char *to,
                uint32_t replace,
                lb_entry *entry);

// Makes durable what was written before. `volume` may be NULL.
//
// Any thread.
int32_t lb_sync(lb_client client, const char *volume);

// Begins to list a directory. The listing is closed with `lb_list_close`.
//
// Any thread; the listing may be used by one after another, and is locked while one does.
int32_t lb_list(lb_client client,
                const char *volume,
                const char *path,
                uint32_t flags,
                lb_listing *listing);

// The next entry and its path, relative to the directory, with a zero byte behind; `LB_END` after the
// last. `path_len` is how long the path is, without that byte. If the answer is `LB_OUT_OF_RANGE` and
// `path_len` is not below `path_size`, the buffer is too short and the same entry comes again; 4096
// bytes are nearly always enough. Any other failure in a recursive listing may be about one directory:
// `message` names it, and the listing goes on until `LB_END`.
//
// Any thread.
int32_t lb_list_next(lb_listing listing,
                     lb_entry *entry,
                     char *path,
                     size_t path_size,
                     size_t *path_len);

// Closes a listing.
//
// Any thread.
int32_t lb_list_close(lb_listing listing);

// Opens a file for reading. `entry`, what it is, may be NULL. The file is closed with `lb_close`.
//
// Any thread; the file may be used by any number of threads at a time.
int32_t lb_open(lb_client client,
                const char *volume,
                const char *path,
                lb_file *file,
                lb_entry *entry);

// Closes a file. Mappings of it stay.
//
// Any thread, also while others read: their calls end as if it was open.
int32_t lb_close(lb_file file);

// Reads bytes from `offset` on into `buffer`, which need not have been written before. `read_len` is how
// many there were, fewer than `len` only at the end of the file. A buffer that is used again is much
// faster than a fresh one, whose first touch costs more than the copy.
//
// Any thread; the buffer is the call's until it ends.
int32_t lb_read_into(lb_file file,
                     uint64_t offset,
                     void *buffer,
                     size_t len,
                     size_t *read_len);

// Maps bytes from `offset` on: in place if they lie in one piece of a file that the daemon lends, else
// in a buffer of the library that is used again. `data` is where they are, `data_len` how many, fewer
// than `len` only at the end of the file. They are only to be read, never change, and are there until
// `lb_unmap`, whatever else is closed.
//
// Any thread, and so for the bytes.
int32_t lb_map_range(lb_file file,
                     uint64_t offset,
                     size_t len,
                     lb_mapping *mapping,
                     const void **data,
                     size_t *data_len);

// Whether no byte was copied for a mapping: 1 or 0.
//
// Any thread.
int32_t lb_mapping_is_in_place(lb_mapping mapping, int32_t *in_place);

// Ends a mapping: nobody may look at its bytes any more.
//
// Any thread.
int32_t lb_unmap(lb_mapping mapping);

// Fills options with what they are if nothing is said.
//
// Any thread.
int32_t lb_write_options_init(lb_write_options *options);

// Begins to write a file. Nobody sees it before `lb_write_commit`; `lb_write_abort` gives it up.
// `options` may be NULL.
//
// Any thread; the upload may be used by any number of threads at a time.
int32_t lb_write_begin(lb_client client,
                       const char *volume,
                       const char *path,
                       const lb_write_options *options,
                       lb_upload *upload);

// Writes bytes at an offset. They are on their way when this returns, and the buffer is the caller's
// again; what goes wrong with them later the next call says, at the latest `lb_write_commit`.
//
// Any thread.
int32_t lb_write(lb_upload upload,
                 uint64_t offset,
                 const void *data,
                 size_t len);

// Writes bytes of another file, from `fd_offset` on, without moving them through this program where that
// can be. The descriptor stays the caller's. `written_len` is how many there were, fewer than `len` only
// if the file ends; it may be NULL.
//
// Any thread.
int32_t lb_write_from_fd(lb_upload upload,
                         int fd,
                         uint64_t fd_offset,
                         uint64_t offset,
                         uint64_t len,
                         uint64_t *written_len);

// What the daemon had of an upload with a key when it was begun again. `count` is how many ranges there
// are; the first `capacity` of them go to `ranges`.
//
// Any thread.
int32_t lb_write_received(lb_upload upload,
                          lb_range *ranges,
                          size_t capacity,
                          size_t *count);

// Publishes the file: it appears whole, in place of what had the name. `entry`, what it is now, may be
// NULL. The upload is closed, also if this fails; only if another thread is using it
// (`LB_FAILED_PRECONDITION`, kind "Busy") nothing has happened. A file that is not to be published after
// all, because a commit failed, is gone, unless it has a key.
//
// Any thread.
int32_t lb_write_commit(lb_upload upload,
                        lb_entry *entry);

// Gives an upload up, also if it has a key. Fails as `lb_write_commit` if another thread is using it.
//
// Any thread.
int32_t lb_write_abort(lb_upload upload);

// Closes an upload without a commit. With a key it can be begun again; without one it is gone.
//
// Any thread; if another is using it, it ends with that call.
int32_t lb_write_close(lb_upload upload);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIBRORUM_H */
