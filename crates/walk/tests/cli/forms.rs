//! The forms of output.

use serde_json::Value;

use crate::Folder;

/// Lengths are the same on every file system; what is occupied is not.
const LENGTHS: &[&str] = &["--apparent-size"];

/// A tree whose every time is known.
fn dated() -> Folder {
    let folder = Folder::new();
    folder.write("t/big", &[0; 7_000]);
    folder.write("t/sub/mid,\"q\"", &[0; 2_000]);
    folder.write("t/sub/low/small", &[0; 1_000]);
    for path in ["t/big", "t/sub/low/small", "t/sub/mid,\"q\"", "t/sub/low", "t/sub", "t"] {
        let status =
            folder.command("touch", &["-d", "2024-02-03 04:05:06.5Z", path]).status().unwrap();
        assert!(status.success());
    }
    folder
}

#[test]
fn table() {
    let folder = dated();
    let text = |options: &[&str]| folder.text(&[LENGTHS, options, &["t"]].concat());
    assert_eq!(
        text(&["-a", "-c", "-F", "bytes"]),
        "7000\tt/big\n1000\tt/sub/low/small\n1000\tt/sub/low\n2000\tt/sub/mid,\"q\"\n3000\tt/sub\n\
         10000\tt\n10000\ttotal\n"
    );
    assert_eq!(text(&["-S", "size"]), "9.8K\tt\n3.0K\tt/sub\n1000\tt/sub/low\n");
    assert_eq!(text(&["-S", "size", "-r"]), "1000\tt/sub/low\n3.0K\tt/sub\n9.8K\tt\n");
    assert_eq!(text(&["-S", "name", "-F", "si"]), "10k\tt\n3.0k\tt/sub\n1.0k\tt/sub/low\n");
    assert_eq!(
        text(&["-S", "count", "-f", "-F", "hex"]),
        "0x1b58\tt/big\n0x3e8\tt/sub/low/small\n0x7d0\tt/sub/mid,\"q\"\n"
    );
    assert_eq!(
        text(&["-d", "--min-depth", "1", "-F", "binary"]),
        "1000B\tt/sub/low\n3.0KiB\tt/sub\n"
    );
    assert_eq!(text(&["-d", "-L", "1", "-F", "kilo"]), "3\tt/sub\n10\tt\n");
    assert_eq!(
        text(&["-a", "-t", "1.5kB", "--separate-dirs", "-b"]),
        "7000\tt/big\n2000\tt/sub/mid,\"q\"\n2000\tt/sub\n7000\tt\n"
    );
    assert_eq!(folder.text(&["-d", "t/big"]), "");
    assert_eq!(folder.text(&["-f", "-b", "t/big"]), "7000\tt/big\n");
}

#[test]
fn sorting_by_time_has_the_newest_first() {
    let folder = dated();
    let touched = folder.command("touch", &["-d", "2025-01-01Z", "t/sub/low/small"]).status();
    assert!(touched.unwrap().success());
    let text = folder.text(&["-a", "-S", "time", "-b", "t"]);
    let paths: Vec<&str> = text.lines().map(|line| line.split('\t').nth(1).unwrap()).collect();
    assert_eq!(paths, ["t", "t/sub", "t/sub/low", "t/sub/low/small", "t/big", "t/sub/mid,\"q\""]);
}

#[test]
fn tree() {
    let folder = dated();
    let text =
        |options: &[&str]| folder.text(&[LENGTHS, &["-o", "tree"], options, &["t"]].concat());
    assert_eq!(
        text(&["-a", "-c"]),
        "9.8K ██████████ 100%  t
6.9K ███████     70%  ├── big
3.0K ███         30%  └── sub/
1000 █           10%      ├── low/
1000 █           10%      │   └── small
2.0K ██          20%      └── mid,\"q\"
9.8K                  total
"
    );
    // What is above a line that is shown is shown too.
    assert_eq!(
        text(&["-f", "-t", "-1500", "-F", "bytes", "-S", "size"]),
        "10000 ██████████ 100%  t\n 3000 ███         30%  └── sub/\n 1000 █           10%      └── low/\n 1000 █           10%          └── small\n"
    );
    let mut ascii = folder.command(crate::FDU, &["-o", "tree", "-L1", "--apparent-size", "t"]);
    let output = ascii.env("LC_ALL", "C").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "9.8K ########## 100%  t\n3.0K ###         30%  `-- sub/\n"
    );
}

#[test]
fn json_lines() {
    let folder = Folder::with_tree();
    let output = folder.text(&["--json", "-a", "-c", "tree"]);
    let lines: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let odd = lines.iter().find(|line| line.get("path_hex").is_some()).unwrap();
    assert_eq!(odd["path"], "tree/d/not\u{fffd}utf8");
    assert_eq!(odd["path_hex"], "747265652f642f6e6f74ff75746638");
    assert!(lines.iter().any(|line| line["path"] == "tree/d/new\nline"));
    assert!(lines.iter().any(|line| line["path"] == "tree/dangling" && line["kind"] == "symlink"));
    assert_eq!(lines.last().unwrap()["kind"], "total");

    let folder = dated();
    let output = folder.text(&["-o", "json", "-b", "-f", "t"]);
    let first: Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
    assert_eq!(first["size"], 7000);
    assert_eq!(first["apparent_bytes"], 7000);
    assert_eq!(first["depth"], 1);
    assert_eq!(first["inodes"], 1);
    assert_eq!(first["time"], "2024-02-03T04:05:06.500000000Z");
    assert_eq!(first["kind"], "file");
    let summary: Value = serde_json::from_str(&folder.text(&["--json", "-s", "t/big"])).unwrap();
    assert_eq!(summary["kind"], "file");
}

#[test]
fn csv() {
    let folder = dated();
    let text = folder.text(&["-o", "csv", "-f", "-c", "-b", "t/sub"]);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            // What is occupied depends on the file system.
            let mut fields: Vec<String> = line.splitn(3, ',').map(str::to_owned).collect();
            fields.remove(1);
            fields.join(",")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "size,apparent_bytes,inodes,time,kind,depth,path",
            "1000,1000,1,2024-02-03T04:05:06.500000000Z,file,2,t/sub/low/small",
            "2000,2000,1,2024-02-03T04:05:06.500000000Z,file,1,\"t/sub/mid,\"\"q\"\"\"",
            "3000,3000,4,2024-02-03T04:05:06.500000000Z,total,,",
        ]
    );
}

#[test]
fn raw() {
    let folder = dated();
    let text = folder.text(&["-o", "raw", "-f", "-b", "-0", "t/big"]);
    let mut fields: Vec<&str> = text.split('\t').collect();
    fields.remove(1);
    assert_eq!(fields, ["7000", "7000", "1", "1706933106.500000000", "f", "t/big\0"]);
}

#[test]
fn the_largest() {
    let folder = dated();
    let text = |options: &[&str]| {
        folder.text(&[&["--apparent-size", "--top", "2"], options, &["t"]].concat())
    };
    assert_eq!(
        text(&[]),
        "Largest files:\n6.9K\tt/big\n2.0K\tt/sub/mid,\"q\"\n\nLargest directories:\n9.8K\tt\n3.0K\tt/sub\n"
    );
    assert_eq!(text(&["-f"]), "6.9K\tt/big\n2.0K\tt/sub/mid,\"q\"\n");
    assert_eq!(text(&["-d", "--separate-dirs"]), "6.9K\tt\n2.0K\tt/sub\n");
    assert_eq!(
        text(&["-t", "-2K", "-0", "-f"]),
        "2.0K\tt/sub/mid,\"q\"\x001000\tt/sub/low/small\0"
    );
    let inodes = folder.text(&["--inodes", "--top", "1", "t"]);
    assert_eq!(inodes, "6\tt\n");
    let json = folder.text(&["--top", "1", "--json", "t"]);
    let kinds: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&kinds[0]["kind"], &kinds[1]["kind"]),
        (&Value::from("file"), &Value::from("directory"))
    );
    for jobs in ["-j1", "-j8"] {
        assert_eq!(text(&[jobs]), text(&[]));
    }
    assert_eq!(folder.text(&["--top", "0", "-f", "t"]), "");
}

#[test]
fn groups() {
    let folder = Folder::with_tree();
    let text = folder.text(&["--by", "ext", "--apparent-size", "-F", "bytes", "-c", "tree"]);
    assert_eq!(
        text,
        "10494801\t7\t(none)\n128456\t2\t.txt\n70001\t2\t.rs\n0\t6\t(directories)\n10693258\t17\ttotal\n"
    );
    // Sums of groups are the whole.
    for by in ["ext", "owner", "age"] {
        let text = folder.text(&["--by", by, "-F", "bytes", "-c", "tree"]);
        let numbers: Vec<(u64, u64)> = text
            .lines()
            .map(|line| {
                let mut fields = line.split('\t');
                let mut number = || fields.next().unwrap().parse().unwrap();
                (number(), number())
            })
            .collect();
        let (total, groups) = numbers.split_last().unwrap();
        assert_eq!(groups.iter().map(|group| group.0).sum::<u64>(), total.0, "{text}");
        assert_eq!(groups.iter().map(|group| group.1).sum::<u64>(), total.1, "{text}");
    }
    assert!(folder.text(&["--by", "age", "tree"]).contains("\tup to a day\n"));
    assert!(folder.text(&["--by", "ext", "-o", "csv", "tree"]).starts_with("size,"));
}
