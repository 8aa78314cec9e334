use proptest::prelude::*;

use super::super::{DirEntry, FsUsage};
use super::*;

/// A request as the kernel writes it: the header and words of 32 bits, then bytes.
#[expect(clippy::host_endian_bytes, reason = "the kernel's structures are in the machine's order")]
fn request(opcode: u32, words: &[u32], bytes: &[u8]) -> Vec<u8> {
    let len = 40 + 4 * words.len() + bytes.len();
    let mut out = Vec::new();
    // Unique 7, node 9, uid 10, gid 11, thread 12.
    for word in [u32::try_from(len).unwrap(), opcode, 7, 0, 9, 0, 10, 11, 12, 0] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    for word in words {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out.extend_from_slice(bytes);
    out
}

fn attr() -> Attr {
    Attr {
        ino: 5,
        kind: NodeKind::Directory,
        mode: 0o1755,
        nlink: 2,
        uid: 3,
        gid: 4,
        rdev: 0,
        size_bytes: 1000,
        allocated_bytes: 1025,
        atime: Timestamp::new(-2, 800_000_000),
        mtime: Timestamp::new(1 << 33, 1),
        ctime: Timestamp::new(7, 8),
        ttl: Duration::from_millis(1500),
    }
}

#[test]
fn structures_have_the_kernels_sizes() {
    let size = |fill: &dyn Fn(&mut Output)| {
        let mut out = Output::default();
        fill(&mut out);
        out.bytes().len()
    };
    let agreed = Agreed {
        flags: u64::MAX,
        max_readahead: 0,
        max_background: 64,
        max_write_bytes: 1 << 20,
        max_stack_depth: 1,
    };
    assert_eq!(
        size(&|out| {
            out.header(1, 2, 0);
        }),
        OUT_HEADER_BYTES
    );
    assert_eq!(
        size(&|out| {
            out.init(&agreed);
        }),
        64
    );
    assert_eq!(
        size(&|out| {
            out.entry(&attr(), Duration::ZERO);
        }),
        128
    );
    assert_eq!(
        size(&|out| {
            out.absent(Duration::ZERO);
        }),
        128
    );
    assert_eq!(
        size(&|out| {
            out.attributes(&attr());
        }),
        104
    );
    assert_eq!(
        size(&|out| {
            out.opened(1, 2, 3);
        }),
        16
    );
    assert_eq!(
        size(&|out| {
            out.size(1);
        }),
        8
    );
    assert_eq!(
        size(&|out| {
            out.offset(1);
        }),
        8
    );
    assert_eq!(
        size(&|out| {
            out.statfs(&FsUsage::default());
        }),
        80
    );
    assert_eq!(attributes_invalid(1).bytes().len(), 40);
}

#[test]
#[expect(clippy::host_endian_bytes, reason = "the kernel's structures are in the machine's order")]
fn attributes_are_where_the_kernel_looks() {
    let mut out = Output::default();
    out.attributes(&attr());
    let bytes = out.bytes();
    let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    // fuse_attr_out: seconds and nanoseconds of validity, then fuse_attr from byte 16.
    assert_eq!((u64_at(0), u32_at(8)), (1, 500_000_000));
    assert_eq!((u64_at(16), u64_at(24), u64_at(32)), (5, 1000, 3), "ino, size, blocks of 512");
    assert_eq!(u64_at(40).cast_signed(), -2);
    assert_eq!((u64_at(48), u64_at(56)), (1 << 33, 7));
    assert_eq!((u32_at(64), u32_at(68), u32_at(72)), (800_000_000, 1, 8));
    assert_eq!((u32_at(76), u32_at(80)), (0o041_755, 2), "mode, links");
    assert_eq!((u32_at(84), u32_at(88), u32_at(92), u32_at(96)), (3, 4, 0, 4096));
}

#[test]
fn directory_entries_fill_the_buffer_and_no_more() {
    let entry =
        |name: &str| DirEntry { cookie: 3, name: name.into(), ino: 5, kind: NodeKind::Regular };
    let mut out = Output::default();
    // 24 and a name of 1 to 8 bytes are 32 bytes.
    assert!(out.dir_entry(&entry("a"), None, 64));
    assert!(out.dir_entry(&entry("12345678"), None, 64));
    assert!(!out.dir_entry(&entry("b"), None, 64));
    assert_eq!(out.bytes().len(), 64);
    let mut out = Output::default();
    assert!(!out.dir_entry(&entry("a"), Some((&attr(), Duration::ZERO)), 159));
    assert!(out.dir_entry(&entry("a"), Some((&attr(), Duration::ZERO)), 160));
    assert_eq!(out.bytes().len(), 160);
}

#[test]
fn requests_are_read_as_the_kernel_writes_them() {
    let decoded = |bytes: &[u8]| format!("{:?}", decode(bytes).unwrap().operation);
    let header = decode(&request(17, &[], b"")).unwrap().header;
    assert_eq!((header.unique, header.node, header.uid, header.gid), (7, 9, 10, 11));
    assert_eq!(
        decoded(&request(45, &[6, 0, 2, 0], b"a\0bc\0")),
        "Rename { name: [97], new_parent: 6, new_name: [98, 99], flags: 2 }"
    );
    let write = [1, 0, 4096, 0, 3, 4, 0, 0, 0, 0];
    assert_eq!(
        decoded(&request(16, &write, b"xyz")),
        "Write { handle: 1, offset: 4096, data: [120, 121, 122], kill_set_id: true }"
    );
    let forgets = request(42, &[2, 0, 5, 0, 1, 0, 6, 0, 3, 0], &[]);
    let Operation::BatchForget { nodes } = decode(&forgets).unwrap().operation else {
        panic!("opcode 42 is BATCH_FORGET");
    };
    assert_eq!(nodes.collect::<Vec<_>>(), [(5, 1), (6, 3)]);
    assert_eq!(decoded(&request(15, &[1, 0, 2, 0, 300, 0, 0, 0, 0, 0], &[])), {
        "Read { handle: 1, offset: 2, size: 300 }"
    });
    assert_eq!(decode_caller(&request(15, &[1, 0, 2, 0, 300, 0, 0, 0, 0, 0], &[])), (12, 300));
    assert_eq!(decode_caller(&request(16, &write, b"xyz")), (12, 83));
    // A time before 1970, and the time of the call.
    let mut set = [0; 22];
    set[0] = fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW | fattr::SIZE | fattr::KILL_SUIDGID;
    (set[4], set[8], set[9], set[14]) = (77, u32::MAX - 1, u32::MAX, 800_000_000);
    let set = request(4, &set, &[]);
    let Operation::Setattr(set) = decode(&set).unwrap().operation else {
        panic!("opcode 4 is SETATTR");
    };
    assert_eq!(set.atime, Some(Some(Timestamp::new(-2, 800_000_000))));
    assert_eq!((set.mtime, set.ctime, set.size), (Some(None), None, Some(77)));
    assert!(set.kill_set_id && set.mode.is_none() && set.handle.is_none());
}

#[test]
fn what_is_cut_short_is_refused() {
    assert_eq!(decode(&[]).unwrap_err(), DecodeError::Short);
    assert_eq!(decode(&request(1, &[], b"no end")).unwrap_err(), DecodeError::NoNul);
    let write = [1, 0, 4096, 0, 4, 0, 0, 0, 0, 0];
    assert_eq!(decode(&request(16, &write, b"xyz")).unwrap_err(), DecodeError::Short);
    assert_eq!(decode(&request(42, &[u32::MAX, 0], &[0; 64])).unwrap_err(), DecodeError::Short);
    let mut long = request(17, &[], &[]);
    long.push(0);
    assert_eq!(decode(&long).unwrap_err(), DecodeError::Length { said: 40, read: 41 });
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(opcode in 0_u32..60, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let whole = request(opcode, &[], &bytes);
        if let Ok(Request { operation: Operation::BatchForget { nodes }, .. }) = decode(&whole) {
            prop_assert!(nodes.count() <= 200 / 16);
        }
        prop_assert_eq!(decode_unique(&whole), Some(7));
        for end in 0..whole.len() {
            prop_assert!(decode(&whole[..end]).is_err());
            decode_caller(&whole[..end]);
        }
    }
}
