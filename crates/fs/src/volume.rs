//! The volume's folder: what is in it, how it comes to be, and its configuration.
//!
//! `volume.json` is written last when a volume is formatted, so a folder with it is a whole volume
//! and a folder without it is none, whatever else a crash left there.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use librorum_format::{Chunking, Compression, FORMAT_VERSION, VolumeConfig, VolumeId};
use librorum_meta::{Embedded, EmbeddedOptions};
use librorum_store::Store;

use crate::error::{FsError, Result};

const CONFIG_FILE: &str = "volume.json";

/// What is decided when a volume is formatted.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// How file bytes are cut into chunks.
    pub chunking: Chunking,
    /// Compression of packed segments.
    pub compression: Compression,
    /// Files up to this size live inside the metadata.
    pub inline_max_bytes: u32,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            chunking: Chunking::default(),
            compression: Compression::default(),
            inline_max_bytes: VolumeConfig::INLINE_LIMIT_DEFAULT_BYTES,
        }
    }
}

/// The folder of a volume and its configuration.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: VolumeConfig,
    /// The configuration's chunking, parsed.
    pub chunking: Chunking,
}

impl Volume {
    /// Makes an empty volume in `dir`, which must be new or empty. The root directory belongs to
    /// whoever formats.
    ///
    /// # Errors
    ///
    /// `IsVolume`, `NotEmpty`, `Config` for options out of range, or the disk's failure; then what
    /// was begun is not a volume.
    pub fn format(dir: &Path, options: &FormatOptions) -> Result<Self> {
        let volume_error = |path: &Path| {
            let path = path.to_owned();
            move |source| FsError::Volume { path, source }
        };
        if Self::exists(dir) {
            return Err(FsError::IsVolume { path: dir.to_owned() });
        }
        if options.inline_max_bytes > VolumeConfig::INLINE_LIMIT_MAX_BYTES {
            let most = VolumeConfig::INLINE_LIMIT_MAX_BYTES;
            return Err(FsError::Config {
                path: dir.to_owned(),
                reason: format!(
                    "an inline limit of {} is too large: at most {most}",
                    options.inline_max_bytes
                ),
            });
        }
        fs::create_dir_all(dir).map_err(volume_error(dir))?;
        // What an interrupted format left behind carries no data: only a volume.json makes it count.
        let leftovers = [
            "data",
            "index",
            "ids",
            "ids.draft",
            "meta",
            "volume.json.new",
            "lock",
            "open",
            "log",
            "dumps",
            "spares",
            "uploads",
        ];
        for entry in fs::read_dir(dir).map_err(volume_error(dir))? {
            let name = entry.map_err(volume_error(dir))?.file_name();
            if !leftovers.iter().any(|known| name == *known) {
                return Err(FsError::NotEmpty { path: dir.to_owned() });
            }
        }
        for name in leftovers {
            let path = dir.join(name);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(volume_error(&path)(error));
                }
                _ => {}
            }
        }
        let config = VolumeConfig {
            format_version: FORMAT_VERSION,
            volume_id: VolumeId(librorum_sys::entropy::random()).to_string(),
            chunking: options.chunking.to_string(),
            compression: options.compression,
            inline_max_bytes: options.inline_max_bytes,
        };
        use std::os::unix::fs::DirBuilderExt;
        let meta_dir = dir.join("meta");
        fs::DirBuilder::new().mode(0o700).create(&meta_dir).map_err(volume_error(&meta_dir))?;
        Store::create(dir)?;
        // The bytes of every user's files lie here, under modes that mean nothing.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let data_dir = dir.join("data");
        fs::set_permissions(&data_dir, private).map_err(volume_error(&data_dir))?;
        let meta_options = EmbeddedOptions {
            root_uid: rustix::process::geteuid().as_raw(),
            root_gid: rustix::process::getegid().as_raw(),
            ..EmbeddedOptions::default()
        };
        drop(Embedded::open(&meta_dir, &meta_options)?);
        let path = dir.join(CONFIG_FILE);
        let new_path = dir.join("volume.json.new");
        let mut text = serde_json::to_string_pretty(&config)
            .map_err(|error| FsError::Config { path: path.clone(), reason: error.to_string() })?;
        text.push('\n');
        let mut file = File::create(&new_path).map_err(volume_error(&new_path))?;
        file.write_all(text.as_bytes()).map_err(volume_error(&new_path))?;
        rustix::fs::fsync(&file).map_err(|error| volume_error(&new_path)(error.into()))?;
        fs::rename(&new_path, &path).map_err(volume_error(&path))?;
        let folder = File::open(dir).map_err(volume_error(dir))?;
        rustix::fs::fsync(&folder).map_err(|error| volume_error(dir)(error.into()))?;
        Self::open(dir)
    }

    /// Whether `dir` is a volume.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(CONFIG_FILE).exists()
    }

    /// Reads the configuration of the volume in `dir`.
    ///
    /// # Errors
    ///
    /// `NotVolume`, or `Config` if it is damaged or of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(FsError::NotVolume { path: dir.to_owned() });
            }
            Err(source) => return Err(FsError::Volume { path, source }),
        };
        let invalid = |reason: String| FsError::Config { path: path.clone(), reason };
        // The version first: a newer volume may have fields that this program does not know.
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(FORMAT_VERSION)) {
            let found = version.map_or("no version".to_owned(), |version| version.to_string());
            return Err(invalid(format!(
                "the volume's format is {found}, this program supports {FORMAT_VERSION}"
            )));
        }
        let config: VolumeConfig =
            serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
        let chunking = config.chunking.parse().map_err(&invalid)?;
        if VolumeId::parse(&config.volume_id).is_none() {
            return Err(invalid(format!("'{}' is not a volume id", config.volume_id)));
        }
        Ok(Self { dir: dir.to_owned(), config, chunking })
    }

    /// Where the metadata lies.
    #[must_use]
    pub fn meta_dir(&self) -> PathBuf {
        self.dir.join("meta")
    }
}
