//! `librorum.toml`, and the flat one of the first Librorum.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::Raw;
use super::{Config, Problem, SECTIONS, Source, VolumeConfig, keys};

/// Keys of the flat file, and what they are now.
const FLAT: [(&str, &str); 7] = [
    ("node_prefix", "nodes.name"),
    ("bind_host", "grpc.listen"),
    ("bind_port", "grpc.listen"),
    ("log_level", "daemon.log_level"),
    ("data_dir", "volume"),
    ("heartbeat_interval", "nodes.heartbeat"),
    ("known_nodes", "nodes.peers"),
];

const VOLUME_KEYS: [&str; 5] = ["name", "path", "mount", "options", "create"];

/// What reads one file.
struct Reader<'a> {
    config: &'a mut Config,
    path: &'a Path,
    text: &'a str,
    problems: &'a mut Vec<Problem>,
}

pub(super) fn read(config: &mut Config, path: &Path, text: &str, problems: &mut Vec<Problem>) {
    let mut reader = Reader { config, path, text, problems };
    match DeTable::parse(text) {
        Ok(table) => reader.top(table.get_ref()),
        Err(error) => {
            let offset = error.span().map_or(0, |span| span.start);
            reader.wrong(offset, error.message().to_owned());
        }
    }
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Source {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Source::File { path: self.path.to_owned(), line }
    }

    fn wrong(&mut self, offset: usize, message: String) {
        let place = self.place(offset);
        self.problems.push(Problem { place, message });
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "every other form is refused")]
    fn top(&mut self, table: &DeTable<'_>) {
        let mut flat = Vec::new();
        for (name, value) in table {
            let at = name.span().start;
            let name: &str = name.get_ref();
            match value.get_ref() {
                DeValue::Table(section) if SECTIONS.contains(&name) => self.section(name, section),
                _ if SECTIONS.contains(&name) => {
                    self.wrong(at, format!("{name} is a section: write [{name}]"));
                }
                DeValue::Array(volumes) if name == "volume" => self.volumes(volumes),
                _ if name == "volume" => {
                    self.wrong(at, "each volume begins with [[volume]]".to_owned());
                }
                _ if name == "discovery_interval" => self.wrong(
                    at,
                    "discovery_interval has no meaning any more: nodes.mdns hears of others at \
                     once, and nodes.heartbeat says how often they are asked; remove it"
                        .to_owned(),
                ),
                _ if FLAT.iter().any(|(known, _)| *known == name) => flat.push((name, value)),
                _ => {
                    let candidates = SECTIONS.into_iter().chain(["volume"]);
                    let candidates = candidates.chain(FLAT.iter().map(|(name, _)| *name));
                    let message = match keys::nearest(name, candidates) {
                        Some(near) => format!("there is no key {name}; did you mean {near}?"),
                        None => format!("there is no key {name}"),
                    };
                    self.wrong(at, message);
                }
            }
        }
        self.flat(&flat);
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let full = format!("{section}.{}", name.get_ref());
            match keys::find(&full) {
                Some(key) => {
                    let place = self.place(name.span().start);
                    self.config.set(key, &raw(value.get_ref()), place, self.problems);
                }
                None => self.wrong(name.span().start, keys::unknown(&full)),
            }
        }
    }

    fn volumes(&mut self, volumes: &[Spanned<DeValue<'_>>]) {
        for volume in volumes {
            let at = volume.span().start;
            let DeValue::Table(table) = volume.get_ref() else {
                self.wrong(at, "each volume begins with [[volume]]".to_owned());
                continue;
            };
            let mut read = VolumeConfig {
                name: String::new(),
                path: PathBuf::new(),
                mount: None,
                options: Vec::new(),
                create: false,
            };
            let before = self.problems.len();
            for (name, value) in table {
                let name_at = name.span().start;
                let name: &str = name.get_ref();
                let value = raw(value.get_ref());
                let result = match name {
                    "name" => value.text().map(|name| read.name = name),
                    "path" => value.path().map(|path| read.path = path),
                    "mount" => value.optional_path().map(|mount| read.mount = mount),
                    "options" => value.each(Raw::text).map(|options| read.options = options),
                    "create" => value.boolean().map(|create| read.create = create),
                    _ => Err(match keys::nearest(name, VOLUME_KEYS.into_iter()) {
                        Some(near) => format!("there is no such key; did you mean {near}?"),
                        None => format!("there is no such key; there are {VOLUME_KEYS:?}"),
                    }),
                };
                if let Err(reason) = result {
                    self.wrong(name_at, format!("volume.{name}: {reason}"));
                }
            }
            if self.problems.len() == before {
                self.add_volume(read, at);
            }
        }
    }

    fn add_volume(&mut self, volume: VolumeConfig, at: usize) {
        let VolumeConfig { name, path, mount, options, .. } = &volume;
        if path.as_os_str().is_empty() {
            return self.wrong(at, "volume.path is missing: the volume's folder".to_owned());
        }
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            let message = format!("volume.name '{name}' is not a name: it begins every path");
            return self.wrong(at, message);
        }
        if mount.is_none() && !options.is_empty() {
            let message = "volume.options are those of a mount: set mount too".to_owned();
            return self.wrong(at, message);
        }
        for other in &self.config.volumes {
            let twice = if other.name == *name {
                format!("the name '{name}'")
            } else if other.path == *path {
                format!("the folder {}", path.display())
            } else if mount.is_some() && other.mount == *mount {
                format!("the mount point of '{}'", other.name)
            } else {
                continue;
            };
            return self.wrong(at, format!("two volumes have {twice}"));
        }
        self.config.volumes.push(volume);
    }

    /// The keys of the first Librorum, with their meaning in ours.
    fn flat(&mut self, flat: &[(&str, &Spanned<DeValue<'_>>)]) {
        let find =
            |name: &str| flat.iter().find(|(known, _)| *known == name).map(|&(_, value)| value);
        let mut host = None;
        for &(name, value) in flat {
            let at = value.span().start;
            let raw = raw(value.get_ref());
            let set = match name {
                "bind_host" => match raw.text() {
                    Ok(text) => {
                        host = Some(text);
                        continue;
                    }
                    Err(reason) => Err(reason),
                },
                "bind_port" => continue,
                "data_dir" => match raw.path() {
                    Ok(path) => {
                        let name = "default".to_owned();
                        let options = Vec::new();
                        let volume =
                            VolumeConfig { name, path, mount: None, options, create: true };
                        self.add_volume(volume, at);
                        continue;
                    }
                    Err(reason) => Err(reason),
                },
                // In seconds there.
                "heartbeat_interval" => {
                    raw.positive().map(|seconds| Raw::Text(format!("{seconds}s")))
                }
                _ => Ok(raw),
            };
            let now = FLAT.iter().find(|(known, _)| *known == name).map_or("", |(_, now)| now);
            self.set_flat(name, now, set, at);
        }
        if let Some(value) = find("bind_host").or_else(|| find("bind_port")) {
            let port = match find("bind_port").map(|port| raw(port.get_ref()).positive()) {
                None => Ok(50051),
                Some(port) => port,
            };
            let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let listen = port.map(|port| Raw::List(vec![Raw::Text(format!("{host}:{port}"))]));
            self.set_flat("bind_host and bind_port", "grpc.listen", listen, value.span().start);
        }
    }

    fn set_flat(&mut self, name: &str, now: &str, value: Result<Raw, String>, at: usize) {
        let place = self.place(at);
        let Some(key) = keys::find(now) else {
            return self.wrong(at, format!("{name}: it cannot be read as {now}"));
        };
        if self.config.source(now) != Source::Default {
            return self.wrong(at, format!("{name} is {now} now, which is set as well: remove it"));
        }
        match value {
            Ok(value) => self.config.set(key, &value, place, self.problems),
            Err(reason) => self.wrong(at, format!("{name}: {reason}")),
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Integer(number) => {
            // Digits may be grouped with underscores; the parser has removed them.
            match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Raw::Integer(number),
                Err(_) => Raw::Other("a number beyond all bounds"),
            }
        }
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Array(values) => {
            Raw::List(values.iter().map(|value| raw(value.get_ref())).collect())
        }
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
