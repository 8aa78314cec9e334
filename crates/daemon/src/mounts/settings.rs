//! How a volume is mounted: the options of `mount -o` and of the configuration.

use librorum_format::ErrorKind;
use librorum_fs::{FsOptions, VerifyPolicy};
use librorum_rpc::Failure;

/// What the options add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of mount(8)")]
pub struct Settings {
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Honour device files and set-id bits.
    pub dev_and_suid: bool,
    /// Refuse to execute files.
    pub no_exec: bool,
    /// Never update access times.
    pub no_atime: bool,
    /// Let the kernel read and write by itself where it can.
    pub passthrough: bool,
    /// Make the volume if there is none.
    pub create: bool,
    /// When bytes are verified.
    pub verify: VerifyPolicy,
    /// See `FsOptions`.
    pub unsealed_bytes_max: Option<u64>,
    /// See `FsOptions`.
    pub quiet_ms: Option<u64>,
}

impl Default for Settings {
    /// What a mount without options has: root lets everybody in.
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            read_only: false,
            allow_other: root,
            dev_and_suid: root,
            no_exec: false,
            no_atime: false,
            passthrough: true,
            create: true,
            verify: VerifyPolicy::PageCache,
            unsealed_bytes_max: None,
            quiet_ms: None,
        }
    }
}

impl Settings {
    /// Applies one option, such as `ro` or `unsealed=8G`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for one that there is not, or that makes no sense.
    pub fn apply(&mut self, option: &str) -> Result<(), Failure> {
        let root = rustix::process::geteuid().is_root();
        let invalid = |message: String| Err(Failure::file(ErrorKind::InvalidInput, message));
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("", "") => {}
            ("ro", "") => self.read_only = true,
            ("rw", "") => self.read_only = false,
            ("allow_other", "") => self.allow_other = true,
            ("dev" | "suid", "") => {
                if !root {
                    return invalid(format!("option '{key}' needs root"));
                }
            }
            ("nodev" | "nosuid", "") => self.dev_and_suid = false,
            ("noexec", "") => self.no_exec = true,
            ("exec", "") => self.no_exec = false,
            ("noatime", "") => self.no_atime = true,
            ("no_passthrough", "") => self.passthrough = false,
            ("nocreate", "") => self.create = false,
            // Bytes that the kernel reads by itself cannot be verified at each read.
            ("verify", "always") => {
                self.verify = VerifyPolicy::Always;
                self.passthrough = false;
            }
            ("verify", "cache") => self.verify = VerifyPolicy::PageCache,
            ("unsealed", size) => match librorum_format::parse_size(size) {
                Ok(size) => self.unsealed_bytes_max = Some(size),
                Err(reason) => return invalid(format!("option unsealed: {reason}")),
            },
            ("seal_after", ms) => match ms.parse() {
                Ok(ms) => self.quiet_ms = Some(ms),
                Err(_not_a_number) => {
                    return invalid(format!(
                        "option seal_after: '{ms}' is not a number of milliseconds"
                    ));
                }
            },
            // mount(8) acts on these before it calls us, and they mean nothing here.
            (
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group"
                | "_netdev" | "nofail" | "relatime" | "strictatime" | "diratime" | "async"
                | "atime" | "nodiratime" | "norelatime",
                "",
            ) => {}
            (key, _) if key.starts_with("x-") || key == "comment" => {}
            _ => {
                return invalid(format!(
                    "unknown mount option '{option}'; 'librorum mount --help' lists what there is"
                ));
            }
        }
        Ok(())
    }

    /// How the volume is to be opened.
    pub fn configure(&self, options: &mut FsOptions) {
        options.read_only = self.read_only;
        options.verify = self.verify;
        options.unsealed_bytes_max = self.unsealed_bytes_max.unwrap_or(options.unsealed_bytes_max);
        options.quiet_ms = self.quiet_ms.unwrap_or(options.quiet_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let mut settings = Settings::default();
        let error = settings.apply("nosuch=1").unwrap_err();
        assert!(error.to_string().contains("nosuch=1"), "{error}");
        for option in ["ro", "verify=always", "unsealed=1G"] {
            settings.apply(option).unwrap();
        }
        assert!(settings.read_only && !settings.passthrough);
        assert_eq!(settings.unsealed_bytes_max, Some(1 << 30));
    }
}
