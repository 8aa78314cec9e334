fn main() {
    use librorum_format::*;
    use librorum_store::*;
    let total: u64 = std::env::args().nth(1).unwrap().parse::<u64>().unwrap() * 1_000_000;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    Store::create(dir.path()).unwrap();
    let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
    let chunk = |number: u64| ChunkId::of(&number.to_le_bytes());
    for first in (0..total).step_by(500) {
        let entries: Vec<_> = (first..first + 500)
            .map(|n| (chunk(n), Location { segment: SegmentId(1 << 40 | n / 500), offset_bytes: n % 500 << 20, stored_len_bytes: 1 << 20, encoding: Encoding::Raw }, 1 << 20))
            .collect();
        store.index_chunks(&entries).unwrap();
        if first % 500_000 == 0 {
            let s = std::fs::read_to_string("/proc/self/status").unwrap();
            let g = |k: &str| s.lines().find(|l| l.starts_with(k)).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
            println!("{first} rss {} anon {} file {} disk {}", g("VmRSS"), g("RssAnon"), g("RssFile"), store.usage().unwrap().index_bytes >> 20);
        }
    }
    std::thread::spawn(|| {}).join().unwrap();
    drop(store);
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("closed {}", s.lines().find(|l| l.starts_with("VmRSS")).unwrap());
    let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("reopened {}", s.lines().find(|l| l.starts_with("VmRSS")).unwrap());
    drop(store);
}
