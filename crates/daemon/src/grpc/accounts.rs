//! Names and groups of this machine's users, from `/etc/passwd` and `/etc/group`.
//!
//! Users that only a directory service knows have numbers here and no names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use librorum_sys::clock;

use crate::service::Caller;

/// How long it takes for a change to be seen.
const RECHECK_AFTER: Duration = Duration::from_secs(5);

/// What the two files say.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: HashMap<u32, (String, u32)>,
    groups: HashMap<u32, (String, Vec<String>)>,
}

struct Cached {
    accounts: Arc<Accounts>,
    stamps: [Option<SystemTime>; 2],
    checked_at: Duration,
}

static CACHE: Mutex<Option<Cached>> = Mutex::new(None);

impl Accounts {
    /// As they are now, or were a few seconds ago.
    pub(super) fn current() -> Arc<Self> {
        let now = clock::monotonic();
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = &mut *cache {
            if now.saturating_sub(cached.checked_at) < RECHECK_AFTER {
                return Arc::clone(&cached.accounts);
            }
            if cached.stamps == stamps() {
                cached.checked_at = now;
                return Arc::clone(&cached.accounts);
            }
        }
        let stamps = stamps();
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let accounts = Arc::new(Self::parse(&read("/etc/passwd"), &read("/etc/group")));
        let fresh = Cached { accounts: Arc::clone(&accounts), stamps, checked_at: now };
        *cache = Some(fresh);
        accounts
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let mut found = Self::default();
        for line in passwd.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(uid), Some(gid)) = (fields.next(), fields.nth(1), fields.next())
            else {
                continue;
            };
            if let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) {
                // The first line of a number counts, as for getpwuid(3).
                found.users.entry(uid).or_insert_with(|| (name.to_owned(), gid));
            }
        }
        for line in group.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(gid)) = (fields.next(), fields.nth(1)) else { continue };
            let members = fields.next().unwrap_or("");
            if let Ok(gid) = gid.parse() {
                let members = members.split(',').filter(|name| !name.is_empty());
                let line = || (name.to_owned(), members.map(str::to_owned).collect());
                found.groups.entry(gid).or_insert_with(line);
            }
        }
        found
    }

    /// A user's name, else the number.
    pub(super) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).map_or_else(|| uid.to_string(), |(name, _)| name.clone())
    }

    /// A group's name, else the number.
    pub(super) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).map_or_else(|| gid.to_string(), |(name, _)| name.clone())
    }

    /// Somebody who acts as this user, with the groups that a login would give.
    pub(super) fn caller(&self, uid: u32) -> Caller {
        let Some((name, gid)) = self.users.get(&uid) else {
            // A number that the machine does not know belongs to a group of the same number.
            return Caller { uid, gid: uid, groups: Arc::from([]) };
        };
        let mut groups: Vec<u32> = self
            .groups
            .iter()
            .filter(|(_, (_, members))| members.contains(name))
            .map(|(&gid, _)| gid)
            .collect();
        groups.sort_unstable();
        Caller { uid, gid: *gid, groups: groups.into() }
    }
}

fn stamps() -> [Option<SystemTime>; 2] {
    ["/etc/passwd", "/etc/group"].map(|path| Path::new(path).metadata().ok()?.modified().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_groups_of_a_login() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nada:x:1000:100::/:/bin/sh\ntwin:x:1000:5::/:\nbad\n";
        let group = "users:x:100:\naudio:x:29:ada,bob\nvideo:x:44:adalbert\n";
        let accounts = Accounts::parse(passwd, group);
        let ada = accounts.caller(1000);
        assert_eq!((ada.uid, ada.gid, &ada.groups[..]), (1000, 100, &[29][..]));
        assert_eq!((accounts.user(1000), accounts.user(7)), ("ada".into(), "7".into()));
        assert_eq!(accounts.group(29), "audio");
        assert_eq!(accounts.caller(77).gid, 77);
    }
}
