// Does everything that the header offers, rightly and wrongly. Takes the path of a daemon's socket.
//
// It is compiled as C11 and as C++17.

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "librorum.h"

static void fail(int line, const char *what, int code) {
    const lb_error *error = lb_last_error();
    fprintf(stderr, "line %d: %s: %d, last failure %d %s: %s\n", line, what, code, (int)error->code,
            error->kind, error->message);
    exit(1);
}

#define OK(call)                                    \
    do {                                            \
        int code_ = (call);                         \
        if (code_ != LB_OK) fail(__LINE__, #call, code_); \
    } while (0)

#define CHECK(condition)                                   \
    do {                                                   \
        if (!(condition)) fail(__LINE__, #condition, 0);   \
    } while (0)

#define FAILS(call, expected, expected_kind, expected_errno)                        \
    do {                                                                            \
        int code_ = (call);                                                         \
        const lb_error *error_ = lb_last_error();                                   \
        if (code_ != (expected) || error_->code != code_ ||                         \
            strcmp(error_->kind, (expected_kind)) != 0 ||                           \
            error_->os_errno != (expected_errno) || error_->message[0] == '\0')     \
            fail(__LINE__, #call, code_);                                           \
    } while (0)

#define IS_CLOSED(call) FAILS(call, LB_INVALID_ARGUMENT, "InvalidHandle", 9)
#define IS_WRONG(call) FAILS(call, LB_INVALID_ARGUMENT, "InvalidInput", 22)

enum { BIG = 3000001 };

static unsigned char *noise(size_t len) {
    unsigned char *bytes = (unsigned char *)malloc(len);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < len; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes[i] = (unsigned char)state;
    }
    return bytes;
}

static lb_client connect_to(const char *socket, uint32_t forbid) {
    lb_connect_options options;
    OK(lb_connect_options_init(&options));
    options.name = "everything.c";
    options.forbid = forbid;
    lb_client client = 0;
    OK(lb_connect(socket, &options, &client));
    CHECK(client != 0);
    return client;
}

static void write_whole(lb_client client, const char *path, const void *data, size_t len) {
    lb_write_options options;
    OK(lb_write_options_init(&options));
    options.size_hint = len;
    options.mode = 0640;
    lb_upload upload = 0;
    OK(lb_write_begin(client, NULL, path, &options, &upload));
    size_t half = len / 2;
    OK(lb_write(upload, half, (const char *)data + half, len - half));
    OK(lb_write(upload, 0, data, half));
    lb_entry entry;
    OK(lb_write_commit(upload, &entry));
    CHECK(entry.size_bytes == len && entry.kind == LB_KIND_REGULAR && entry.mode == 0640);
    IS_CLOSED(lb_write_commit(upload, NULL));
    IS_CLOSED(lb_write_abort(upload));
    IS_CLOSED(lb_write(upload, 0, "x", 1));
}

static void contents(const char *socket, uint32_t forbid) {
    lb_client client = connect_to(socket, forbid);
    unsigned char *bytes = noise(BIG);
    unsigned char *read = (unsigned char *)malloc(BIG + 7);
    char path[64];
    const size_t lens[] = {0, 1, 5000, 65537, BIG};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        size_t len = lens[i];
        snprintf(path, sizeof path, "contents-%u-%zu", (unsigned)forbid, len);
        write_whole(client, path, bytes, len);

        lb_file file = 0;
        lb_entry entry;
        OK(lb_open(client, "", path, &file, &entry));
        CHECK(entry.size_bytes == len && entry.nlink == 1 && entry.mtime.seconds > 0);
        size_t read_len = 77;
        OK(lb_read_into(file, 0, read, BIG + 7, &read_len));
        CHECK(read_len == len && memcmp(read, bytes, len) == 0);
        OK(lb_read_into(file, len + 1, read, 10, &read_len));
        CHECK(read_len == 0);

        lb_mapping mapping = 0;
        const void *data = NULL;
        size_t data_len = 77;
        size_t from = len / 3;
        OK(lb_map_range(file, from, BIG, &mapping, &data, &data_len));
        CHECK(data != NULL && data_len == len - from);
        int32_t in_place = 7;
        OK(lb_mapping_is_in_place(mapping, &in_place));
        CHECK(in_place == 0 || in_place == 1);

        // A mapping outlives its file.
        OK(lb_close(file));
        IS_CLOSED(lb_close(file));
        IS_CLOSED(lb_read_into(file, 0, read, 1, &read_len));
        CHECK(memcmp(data, bytes + from, data_len) == 0);
        OK(lb_unmap(mapping));
        IS_CLOSED(lb_unmap(mapping));
    }
    free(bytes);
    free(read);
    OK(lb_disconnect(client));
}

static void small_operations(lb_client client) {
    lb_entry entry;
    OK(lb_mkdir(client, NULL, "tree/a/b", 0755, LB_MKDIR_PARENTS, &entry));
    CHECK(entry.kind == LB_KIND_DIRECTORY && entry.mode == 0755);
    FAILS(lb_mkdir(client, NULL, "tree", 0755, 0, NULL), LB_ALREADY_EXISTS, "AlreadyExists", 17);
    FAILS(lb_stat(client, NULL, "no", &entry), LB_NOT_FOUND, "NotFound", 2);
    OK(lb_stat(client, NULL, "", &entry));
    CHECK(entry.kind == LB_KIND_DIRECTORY && entry.ino != 0);

    write_whole(client, "tree/a/file", "words", 5);
    OK(lb_copy(client, NULL, "tree/a/file", "tree/copy", LB_REPLACE_NO, &entry));
    CHECK(entry.size_bytes == 5);
    FAILS(lb_copy(client, NULL, "tree/a/file", "tree/copy", LB_REPLACE_NO, NULL),
          LB_ALREADY_EXISTS, "AlreadyExists", 17);
    OK(lb_rename(client, NULL, "tree/copy", "tree/renamed", LB_REPLACE_NO, NULL));
    FAILS(lb_stat(client, NULL, "tree/copy", &entry), LB_NOT_FOUND, "NotFound", 2);
    IS_WRONG(lb_rename(client, NULL, "tree/renamed", "tree/x", 9, NULL));

    OK(lb_symlink(client, NULL, "tree/link", "a/file", &entry));
    CHECK(entry.kind == LB_KIND_SYMLINK);
    char target[16];
    size_t len = 0;
    OK(lb_read_link(client, NULL, "tree/link", target, sizeof target, &len));
    CHECK(len == 6 && strcmp(target, "a/file") == 0);
    FAILS(lb_read_link(client, NULL, "tree/link", target, 6, &len), LB_OUT_OF_RANGE, "OutOfRange",
          34);
    CHECK(len == 6);
    IS_WRONG(lb_read_link(client, NULL, "tree/renamed", target, sizeof target, &len));

    // tree: a, a/b, a/file, link, renamed
    lb_listing listing = 0;
    OK(lb_list(client, NULL, "tree", LB_LIST_RECURSIVE, &listing));
    char path[64];
    int count = 0, code;
    while ((code = lb_list_next(listing, &entry, path, sizeof path, &len)) == LB_OK) {
        CHECK(strlen(path) == len && len > 0);
        if (strcmp(path, "a/file") == 0) CHECK(entry.size_bytes == 5);
        count++;
    }
    CHECK(code == LB_END && count == 5);
    CHECK(lb_list_next(listing, &entry, path, sizeof path, &len) == LB_END);
    OK(lb_list_close(listing));
    IS_CLOSED(lb_list_close(listing));
    IS_CLOSED(lb_list_next(listing, &entry, path, sizeof path, &len));

    // What does not fit comes again.
    OK(lb_list(client, NULL, "tree/a", 0, &listing));
    FAILS(lb_list_next(listing, &entry, path, 1, &len), LB_OUT_OF_RANGE, "OutOfRange", 34);
    CHECK(len == 1 || len == 4);
    size_t needed = len + 1;
    OK(lb_list_next(listing, &entry, path, needed, &len));
    CHECK(len + 1 == needed && strcmp(path, len == 1 ? "b" : "file") == 0);
    OK(lb_list_close(listing));

    // What is not there is said at the first entry.
    OK(lb_list(client, NULL, "no", 0, &listing));
    FAILS(lb_list_next(listing, &entry, path, sizeof path, &len), LB_NOT_FOUND, "NotFound", 2);
    OK(lb_list_close(listing));

    OK(lb_sync(client, NULL));
    FAILS(lb_sync(client, "no such volume"), LB_NOT_FOUND, "NotFound", 2);
    FAILS(lb_remove(client, NULL, "tree", 0, NULL), LB_FAILED_PRECONDITION, "IsDirectory", 21);
    FAILS(lb_remove(client, NULL, "tree", LB_REMOVE_DIRECTORY, NULL), LB_FAILED_PRECONDITION,
          "NotEmpty", 39);
    uint64_t removed = 0;
    OK(lb_remove(client, NULL, "tree", LB_REMOVE_RECURSIVE, &removed));
    CHECK(removed == 6);
    FAILS(lb_remove(client, NULL, "tree", 0, NULL), LB_NOT_FOUND, "NotFound", 2);
    OK(lb_remove(client, NULL, "tree", LB_REMOVE_MISSING_OK, NULL));
}

static void uploads(lb_client client) {
    lb_upload upload = 0;
    OK(lb_write_begin(client, NULL, "given-up", NULL, &upload));
    OK(lb_write(upload, 0, "words", 5));
    OK(lb_write_abort(upload));
    IS_CLOSED(lb_write_abort(upload));
    lb_entry entry;
    FAILS(lb_stat(client, NULL, "given-up", &entry), LB_NOT_FOUND, "NotFound", 2);

    // By a descriptor.
    FILE *file = tmpfile();
    CHECK(file != NULL);
    for (int i = 0; i < 100000; i++) fputc('a' + i % 26, file);
    fflush(file);
    uint64_t written = 0;
    OK(lb_write_begin(client, NULL, "from-fd", NULL, &upload));
    OK(lb_write_from_fd(upload, fileno(file), 26, 0, 1000000, &written));
    CHECK(written == 100000 - 26);
    IS_WRONG(lb_write_from_fd(upload, -1, 0, 0, 1, NULL));
    OK(lb_write_commit(upload, &entry));
    CHECK(entry.size_bytes == written);
    fclose(file);

    // With a key it is found again.
    lb_write_options options;
    OK(lb_write_options_init(&options));
    options.key = "0123456789abcdef";
    options.flags = LB_WRITE_MTIME;
    options.mtime.seconds = 1000000000;
    OK(lb_write_begin(client, NULL, "keyed", &options, &upload));
    OK(lb_write(upload, 0, "first ", 6));
    OK(lb_write_close(upload));
    IS_CLOSED(lb_write_close(upload));
    OK(lb_write_begin(client, NULL, "keyed", &options, &upload));
    lb_range ranges[4];
    size_t count = 0;
    OK(lb_write_received(upload, ranges, 4, &count));
    CHECK(count <= 1);
    OK(lb_write(upload, 0, "first ", 6));
    OK(lb_write(upload, 6, "second", 6));
    OK(lb_write_commit(upload, &entry));
    CHECK(entry.size_bytes == 12 && entry.mtime.seconds == 1000000000);
}

static void misuse(const char *socket, lb_client client) {
    lb_client other = 7;
    IS_WRONG(lb_connect(NULL, NULL, &other));
    IS_WRONG(lb_connect(socket, NULL, NULL));
    IS_WRONG(lb_connect("not/absolute", NULL, &other));
    IS_WRONG(lb_connect("ftp://example", NULL, &other));
    FAILS(lb_connect_fd(-1, NULL, &other), LB_INVALID_ARGUMENT, "InvalidInput", 22);
    lb_connect_options options;
    OK(lb_connect_options_init(&options));
    options.retry_for_ms = 0;
    FAILS(lb_connect("/no/such/socket", &options, &other), LB_UNAVAILABLE, "Disconnected", 0);
    options.struct_size = 3;
    IS_WRONG(lb_connect(socket, &options, &other));
    OK(lb_connect_options_init(&options));
    options.forbid = 64;
    IS_WRONG(lb_connect(socket, &options, &other));
    options.forbid = 0;
    options.tls_key = "a key alone";
    IS_WRONG(lb_connect(socket, &options, &other));
    CHECK(other == 7);
    IS_WRONG(lb_connect_options_init(NULL));
    IS_WRONG(lb_write_options_init(NULL));

    // Made up, none, and of another kind.
    lb_entry entry;
    IS_CLOSED(lb_stat(0, NULL, "", &entry));
    IS_CLOSED(lb_stat(12345, NULL, "", &entry));
    IS_CLOSED(lb_stat(UINT64_MAX, NULL, "", &entry));
    IS_CLOSED(lb_close(client));
    IS_CLOSED(lb_unmap(client));
    IS_CLOSED(lb_list_close(client));
    IS_CLOSED(lb_write_abort(client));
    IS_CLOSED(lb_write_close(client));
    IS_CLOSED(lb_disconnect(0));

    IS_WRONG(lb_stat(client, NULL, NULL, &entry));
    IS_WRONG(lb_stat(client, NULL, "", NULL));
    IS_WRONG(lb_stat(client, "\xff", "", &entry));
    IS_WRONG(lb_mkdir(client, NULL, "x", 0755, 64, NULL));
    IS_WRONG(lb_remove(client, NULL, "x", 64, NULL));
    IS_WRONG(lb_list(client, NULL, "", 0, NULL));
    IS_WRONG(lb_open(client, NULL, "x", NULL, NULL));
    IS_WRONG(lb_write_begin(client, NULL, "x", NULL, NULL));
    FAILS(lb_stat(client, NULL, "a/../b", &entry), LB_INVALID_ARGUMENT, "InvalidInput", 22);

    lb_file file = 0;
    write_whole(client, "words", "words", 5);
    OK(lb_open(client, NULL, "words", &file, NULL));
    char byte;
    size_t len = 0;
    lb_mapping mapping = 0;
    const void *data = NULL;
    IS_WRONG(lb_read_into(file, 0, NULL, 1, &len));
    IS_WRONG(lb_read_into(file, 0, &byte, 1, NULL));
    IS_WRONG(lb_read_into(file, 0, &byte, SIZE_MAX, &len));
    OK(lb_read_into(file, 0, NULL, 0, &len));
    IS_WRONG(lb_map_range(file, 0, 1, NULL, &data, &len));
    IS_WRONG(lb_map_range(file, 0, 1, &mapping, NULL, &len));
    IS_WRONG(lb_map_range(file, 0, 1, &mapping, &data, NULL));
    IS_WRONG(lb_map_range(file, 0, SIZE_MAX, &mapping, &data, &len));
    OK(lb_close(file));
}

struct reader {
    lb_client client;
    lb_file file;
    const unsigned char *bytes;
};

static void *read_often(void *argument) {
    struct reader *reader = (struct reader *)argument;
    unsigned char buffer[4096];
    for (unsigned i = 0; i < 200; i++) {
        size_t len = 0;
        uint64_t offset = (uint64_t)i * 7919 % (BIG - sizeof buffer);
        OK(lb_read_into(reader->file, offset, buffer, sizeof buffer, &len));
        CHECK(len == sizeof buffer && memcmp(buffer, reader->bytes + offset, len) == 0);
        lb_entry entry;
        FAILS(lb_stat(reader->client, NULL, "no", &entry), LB_NOT_FOUND, "NotFound", 2);
    }
    return NULL;
}

static void threads(lb_client client) {
    unsigned char *bytes = noise(BIG);
    write_whole(client, "shared", bytes, BIG);
    struct reader reader = {client, 0, bytes};
    OK(lb_open(client, NULL, "shared", &reader.file, NULL));
    pthread_t threads[8];
    for (size_t i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, read_often, &reader) == 0);
    for (size_t i = 0; i < 8; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    OK(lb_close(reader.file));
    free(bytes);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(lb_abi_version() == LB_ABI_VERSION);
    CHECK(strlen(lb_version()) >= 5);
    CHECK(lb_last_error()->code == LB_OK && lb_last_error()->message[0] == '\0');
    const char *socket = argv[1];
    const uint32_t forbidden[] = {0, LB_TRANSPORT_FD, LB_TRANSPORT_FD | LB_TRANSPORT_ARENA,
                                  LB_TRANSPORT_FD | LB_TRANSPORT_INLINE};
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++)
        contents(socket, forbidden[i]);
    lb_client client = connect_to(socket, 0);
    small_operations(client);
    uploads(client);
    misuse(socket, client);
    threads(client);
    OK(lb_disconnect(client));
    IS_CLOSED(lb_disconnect(client));
    lb_entry entry;
    IS_CLOSED(lb_stat(client, NULL, "", &entry));
    puts("everything works");
    return 0;
}
