//! Objects by number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use librorum_rpc::client::{Client, Mapped, RemoteFile, Upload};

use crate::error::Problem;
use crate::listing::Pages;

/// What numbers are given out for. The kind is part of the number: its lowest byte.
pub(crate) trait Kind: Sized + 'static {
    const TAG: u64;
    const NAME: &'static str;
    fn table() -> &'static Table<Self>;
}

/// The objects of one kind.
pub(crate) struct Table<T>(LazyLock<RwLock<HashMap<u64, Arc<T>>>>);

/// Shared by all kinds. At a billion objects a second it lasts for two years; 0 is never given out.
static NEXT: AtomicU64 = AtomicU64::new(1);

macro_rules! kinds {
    ($($type:ty, $tag:literal, $name:literal, $table:ident;)*) => { $(
        static $table: Table<$type> = Table(LazyLock::new(Default::default));

        impl Kind for $type {
            const TAG: u64 = $tag;
            const NAME: &'static str = $name;
            fn table() -> &'static Table<Self> { &$table }
        }
    )* };
}

kinds! {
    Client, 1, "client", CLIENTS;
    RemoteFile, 2, "file", FILES;
    Upload, 3, "upload", UPLOADS;
    Pages, 4, "listing", LISTINGS;
    Mapped, 5, "mapping", MAPPINGS;
}

impl<T> Table<T> {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Arc<T>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Arc<T>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives an object its number.
pub(crate) fn insert<T: Kind>(object: T) -> u64 {
    let number = NEXT.fetch_add(1, Ordering::Relaxed) << 8 | T::TAG;
    T::table().write().insert(number, Arc::new(object));
    number
}

/// The object of a number. It stays until the caller drops it, whoever closes it meanwhile.
pub(crate) fn get<T: Kind>(number: u64) -> Result<Arc<T>, Problem> {
    T::table().read().get(&number).map(Arc::clone).ok_or_else(|| unknown::<T>(number))
}

/// Takes a number back.
pub(crate) fn remove<T: Kind>(number: u64) -> Result<Arc<T>, Problem> {
    // The object is dropped by the caller, after the table is free for others.
    let removed = T::table().write().remove(&number);
    removed.ok_or_else(|| unknown::<T>(number))
}

/// Takes a number back whose object nobody uses at this moment.
pub(crate) fn take<T: Kind>(number: u64) -> Result<T, Problem> {
    let mut table = T::table().write();
    let object = table.remove(&number).ok_or_else(|| unknown::<T>(number))?;
    // Who uses it got it from the table, which is ours now: the count cannot rise.
    Arc::try_unwrap(object).map_err(|object| {
        table.insert(number, object);
        Problem::in_use(T::NAME)
    })
}

fn unknown<T: Kind>(number: u64) -> Problem {
    let why = match (number, number & 0xff == T::TAG) {
        (0, _) => "none",
        (_, true) => "closed, or was made up",
        (_, false) => "of another kind",
    };
    Problem::bad_handle(format!("{number:#x} is no open {}: it is {why}", T::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Thing;

    static THINGS: Table<Thing> = Table(LazyLock::new(Default::default));

    impl Kind for Thing {
        const TAG: u64 = 200;
        const NAME: &'static str = "thing";
        fn table() -> &'static Table<Self> {
            &THINGS
        }
    }

    #[test]
    fn a_number_is_never_given_out_twice() {
        let first = insert(Thing);
        assert!(get::<Thing>(first).is_ok());
        assert!(remove::<Thing>(first).is_ok());
        assert!(remove::<Thing>(first).is_err());
        let second = insert(Thing);
        assert_ne!(first, second);
        assert!(get::<Thing>(first).is_err());
        assert!(get::<Client>(second).is_err());
        assert!(remove::<Thing>(second).is_ok());
    }

    #[test]
    fn what_another_thread_uses_is_not_taken_from_it() {
        let number = insert(Thing);
        let used = get::<Thing>(number);
        assert!(take::<Thing>(number).is_err());
        assert!(get::<Thing>(number).is_ok());
        drop(used);
        assert!(take::<Thing>(number).is_ok());
        assert!(take::<Thing>(number).is_err());
    }
}
