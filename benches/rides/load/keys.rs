//! The idempotency keys that the requests carry.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A UUID as text.
pub(crate) type Key = [u8; 36];

/// A source of keys for many clients.
#[derive(Debug)]
pub(crate) enum Keys {
    /// A new one each time; random, as clients' keys are, so that they spread over the whole index.
    Fresh,
    /// These, each once.
    Once(Arc<[Key]>, AtomicUsize),
    /// These, again from the first after the last.
    Again(Arc<[Key]>, AtomicUsize),
}

impl Keys {
    pub(crate) fn once(keys: &Arc<[Key]>) -> Self {
        Self::Once(Arc::clone(keys), AtomicUsize::new(0))
    }

    pub(crate) fn again(keys: &Arc<[Key]>) -> Self {
        Self::Again(Arc::clone(keys), AtomicUsize::new(0))
    }

    /// Returns the next key; `None` when there are no more.
    pub(super) fn next(&self) -> Option<Key> {
        match self {
            Self::Fresh => Some(random()),
            Self::Once(keys, at) => keys.get(at.fetch_add(1, Ordering::Relaxed)).copied(),
            Self::Again(keys, at) => Some(keys[at.fetch_add(1, Ordering::Relaxed) % keys.len()]),
        }
    }
}

pub(crate) fn random() -> Key {
    let mut key = [0; 36];
    // From the thread's own generator: `Uuid::new_v4` would ask the kernel each time.
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().hyphenated().encode_lower(&mut key);
    key
}

pub(crate) fn set_of(count: usize) -> Arc<[Key]> {
    std::iter::repeat_with(random).take(count).collect()
}
