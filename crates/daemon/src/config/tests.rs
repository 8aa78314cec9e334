use super::*;

fn load(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("librorum.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    let flags: Vec<_> =
        flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Config::load_at(&Places::system(), Some(&path), environment, &flags)
        .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn later_sources_win_and_each_value_knows_its_own() {
    let text = "[daemon]\nlog_level = 'warn'\n[nodes]\nheartbeat = '2s'\npeers = ['a:1']\n";
    let environment = [
        ("LIBRORUM_NODES_PEERS", "b:1, c:2"),
        ("LIBRORUM_DAEMON_LOG_LEVEL", "info"),
        ("LIBRORUM_LOG", "debug"),
        ("HOME", "/root"),
    ];
    let flags = [("daemon.log_level", "error"), ("limits.bytes", "8M")];
    let config = load(text, &environment, &flags).unwrap();
    assert_eq!(config.daemon.log_level, "error");
    assert_eq!(config.nodes.peers, ["b:1", "c:2"]);
    assert_eq!((config.nodes.heartbeat, config.limits.bytes), (Duration::from_secs(2), 8 << 20));
    assert!(matches!(config.source("nodes.heartbeat"), Source::File { line: 4, .. }));
    let kinds = ["daemon.log_level=flag", "nodes.peers=environment", "nodes.heartbeat=file"];
    let sources = config.to_message().sources;
    for kind in kinds.into_iter().chain(["nodes.mdns=default"]) {
        assert!(sources.iter().any(|source| source == kind), "{kind} in {sources:?}");
    }
}

#[test]
fn what_is_not_understood_is_told_with_its_line_and_the_nearest_key() {
    let told = |text: &str| load(text, &[], &[]).unwrap_err();
    assert_eq!(
        told("\n[daemon]\nlog_levle = 'info'\n"),
        "librorum.toml:3: there is no key daemon.log_levle; did you mean daemon.log_level?"
    );
    assert_eq!(
        told("[daemon]\nheartbeat = '1s'\n"),
        "librorum.toml:2: there is no key daemon.heartbeat; did you mean nodes.heartbeat?"
    );
    assert!(told("[demon]\n").contains("did you mean daemon?"));
    assert!(told("[daemon\n").starts_with("librorum.toml:1: "));
    assert!(told("[[volume]]\nname = 'a'\npaht = '/b'\n").contains(":3: volume.paht: there is no"));
    // All of them at once.
    assert_eq!(told("[nodes]\nmdns = 1\nheartbeat = 5\n").lines().count(), 2);
    let told = |name, value| load("", &[(name, value)], &[]).unwrap_err();
    let answer = told("LIBRORUM_GRPC_LISTN", "x");
    assert!(
        answer
            .contains("LIBRORUM_GRPC_LISTN: there is no key grpc.listn; did you mean grpc.listen")
    );
    assert!(
        told("LIBRORUM_GRPC_LISTEN", "x").starts_with("LIBRORUM_GRPC_LISTEN: grpc.listen: 'x'")
    );
    assert!(load("", &[], &[("nodes.mdsn", "true")]).unwrap_err().contains("nodes.mdns"));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for (text, word) in [
        ("[nodes]\nheartbeat = 5", "5s"),
        ("[nodes]\nheartbeat = '0s'", "more than nothing"),
        ("[nodes]\nheartbeat = '5 parsecs'", "not a time"),
        ("[nodes]\nmdns = 'true'", "true or false"),
        ("[nodes]\npeers = ['0.0.0.0:1']", "nobody can be reached"),
        ("[nodes]\noffline_after = 0", "at least 1"),
        ("[limits]\nrequests = -1", "from 0"),
        ("[limits]\nbytes = '4Q'", "units"),
        ("[limits]\nconnections = 1", "connections_per_uid"),
        ("[daemon]\nsocket = 'x.sock'", "absolute"),
        ("[daemon]\nlog_level = 'loud'", "log level"),
        ("[daemon]\nallow_uids = 5", "a list"),
        ("[grpc]\nlisten = ['0.0.0.0:1']", "tls_cert"),
        ("[grpc]\ntls_key = '/k'", "belong together"),
        ("[grpc]\ntoken_file = ''", "nobody could get in"),
        ("[metrics]\nlisten = '0.0.0.0:9'", "token_file"),
        ("[metrics]\notlp_endpoint = 'localhost:4317'", "http://"),
        ("[metrics]\notlp_headers = ['k=secret']", "otlp_endpoint"),
        ("[[volume]]\nname = 'a/b'\npath = '/v'", "not a name"),
        ("[[volume]]\nname = 'a'\npath = '/v'\noptions = ['ro']", "mount too"),
        ("[[volume]]\nname = 'a'\npath = '/v'\n[[volume]]\nname = 'a'\npath = '/w'", "two volumes"),
    ] {
        let told = load(text, &[], &[]).unwrap_err();
        assert!(told.contains(word), "{text}: {told}");
        assert!(!told.contains("secret"));
    }
}

#[test]
fn the_flat_file_of_the_first_librorum_is_understood() {
    let text = "node_prefix = 'attic'\nbind_host = '127.0.0.1'\nbind_port = 50052\n\
                log_level = 'debug'\ndata_dir = '/srv/data'\nheartbeat_interval = 30\n\
                known_nodes = ['10.0.0.1:50051']\n";
    let config = load(text, &[], &[]).unwrap();
    assert_eq!(config.nodes.name, "attic");
    assert_eq!(config.grpc.listen, ["127.0.0.1:50052".parse().unwrap()]);
    assert_eq!(config.nodes.heartbeat, Duration::from_secs(30));
    assert_eq!(
        (config.volumes[0].path.as_path(), config.volumes[0].create),
        ("/srv/data".as_ref(), true)
    );
    assert_eq!(config.nodes.peers, ["10.0.0.1:50051"]);
    assert!(matches!(config.source("nodes.heartbeat"), Source::File { line: 6, .. }));
    let told = load("discovery_interval = 60\n", &[], &[]).unwrap_err();
    assert!(told.starts_with("librorum.toml:1: ") && told.contains("nodes.mdns"), "{told}");
    // Its default let everybody in, unencrypted.
    assert!(load("bind_host = '0.0.0.0'\n", &[], &[]).unwrap_err().contains("tls_cert"));
    let told = load("log_level = 'info'\n[daemon]\nlog_level = 'warn'\n", &[], &[]).unwrap_err();
    assert!(told.contains("set as well"), "{told}");
}

#[test]
fn what_is_in_effect_is_shown_without_secrets_and_can_be_read_again() {
    let text = "[metrics]\notlp_endpoint = 'http://h:4317'\notlp_headers = ['api-key=hunter2']\n\
                [nodes]\nheartbeat = '1500ms'\n[[volume]]\nname = 'a'\npath = '/v'\nmount = '/m'\n\
                options = ['ro']\n";
    let config = load(text, &[], &[]).unwrap();
    let shown = config.to_toml();
    assert!(!shown.contains("hunter2") && shown.contains("api-key=(secret)"), "{shown}");
    let again = load(&shown, &[], &[]).unwrap();
    assert_eq!(config.diff(&again).hot, ["metrics.otlp_headers"]);
    assert!(config.diff(&again).restart.is_empty());
}

#[test]
fn a_change_says_whether_it_needs_a_restart() {
    let old = Config::defaults(&Places::system());
    let mut new = old.clone();
    assert_eq!(old.diff(&new), Diff::default());
    new.daemon.log_level = "debug".into();
    new.nodes.peers = vec!["a:1".into()];
    new.grpc.listen.clear();
    let diff = old.diff(&new);
    assert_eq!(diff.hot, ["daemon.log_level", "nodes.peers"]);
    assert_eq!(diff.restart, ["grpc.listen"]);
}

fn packaged() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/librorum.toml");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_packaged_file_names_every_key_with_its_default() {
    let text = packaged();
    let defaults = Config::defaults(&Places::system());
    let config = load(&text, &[], &[]).unwrap();
    assert_eq!(defaults.diff(&config), Diff::default());
    // And with every comment that is a setting taken as one.
    let mut all = String::new();
    for line in text.lines() {
        if line.starts_with("#[[volume]]") {
            break;
        }
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#']));
        all.push_str(setting.unwrap_or(line));
        all.push('\n');
    }
    for (name, _) in key_names() {
        let (section, key) = name.split_once('.').unwrap();
        let after = all.split_once(&format!("[{section}]\n")).unwrap().1;
        let body = after.split_once("\n[").map_or(after, |(body, _)| body);
        assert!(body.lines().any(|line| line.starts_with(&format!("{key} ="))), "{name}");
    }
}

#[test]
fn every_key_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (name, _) in key_names() {
        assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/operations.md");
    }
}

#[test]
fn a_token_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    std::fs::write(&path, "# comment\n\nabcdefgh01234567 0 me\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Config::first_token(&path).is_err());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(Config::first_token(&path).unwrap(), "abcdefgh01234567");
}
