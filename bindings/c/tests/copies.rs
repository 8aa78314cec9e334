//! The Swift package carries copies of what others own: they are the originals.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

#[test]
fn the_swift_package_has_the_originals() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let swift = root.join("bindings/swift");
    for (original, copy) in [
        ("bindings/c/include/librorum.h", "Sources/CLibrorum/librorum.h"),
        ("proto/librorum/v1/files.proto", "Sources/LibrorumRemote/Protos/librorum/v1/files.proto"),
        ("proto/golden-frames.json", "Tests/LibrorumFramesTests/Resources/golden-frames.json"),
    ] {
        let expected = std::fs::read(root.join(original)).unwrap();
        let found = std::fs::read(swift.join(copy)).unwrap();
        assert!(found == expected, "bindings/swift/{copy} is not {original}: copy it anew");
    }
}
