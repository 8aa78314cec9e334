//! `librorum format`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use librorum_format::{Chunking, Compression};
use librorum_fs::{FormatOptions, Volume};

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum format /srv/volume --chunking cdc:256K --compression lz4"
)]
pub(crate) struct Format {
    /// The folder of the volume: new or empty. Its disk should know SEEK_DATA (ext4, XFS, btrfs).
    volume: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// What is decided once for a volume.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// How files are cut into chunks: fixed:SIZE or cdc:AVERAGE.
    #[arg(long, default_value = "cdc:1M", value_name = "fixed:SIZE|cdc:AVERAGE")]
    chunking: Chunking,
    /// Compression of packed segments, which hold small files.
    #[arg(long, default_value = "zstd", value_name = "off|lz4|zstd")]
    compression: Compression,
    /// Files up to this size live inside the metadata.
    #[arg(long, default_value = "4K", value_name = "SIZE", value_parser = parse_u32)]
    inline_limit: u32,
}

fn parse_u32(text: &str) -> Result<u32, String> {
    let size = librorum_format::parse_size(text)?;
    u32::try_from(size).map_err(|_too_large| format!("'{text}' is too large"))
}

impl Options {
    pub(crate) fn get(self) -> FormatOptions {
        FormatOptions {
            chunking: self.chunking,
            compression: self.compression,
            inline_max_bytes: self.inline_limit,
        }
    }
}

impl Format {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let volume = Volume::format(&self.volume, &self.options.get())?;
        if json {
            println!("{}", serde_json::json!({ "volume": volume.dir, "config": volume.config }));
        } else {
            println!("Made volume {} in {}", volume.config.volume_id, volume.dir.display());
            println!("Mount it with: librorum mount {} DIR", volume.dir.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
