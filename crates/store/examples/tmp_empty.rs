fn main() {
    use librorum_store::*;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    Store::create(dir.path()).unwrap();
    let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
    let ids: Vec<_> = store.create_staging(256).unwrap().into_iter().map(|(id, _)| id).collect();
    let now = || { let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic); t.tv_sec * 1_000_000_000 + t.tv_nsec };
    for _ in 0..3 {
        let start = now();
        for id in &ids { assert!(store.empty(*id).unwrap()); }
        println!("{} us per empty", (now() - start) / 256_000);
    }
}
