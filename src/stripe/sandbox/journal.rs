//! The ledger's file: one JSON line per event, appended.
//!
//! It is not fsynced. A write that returned is in the kernel's page cache and so outlives this process however
//! it dies, which is the failure that the service is tested against. A power cut could take the newest lines;
//! for money that does not exist that is cheaper than a disk flush per charge. One `write` is also short enough
//! to be made on the runtime's own threads.

use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::{Charge, ChargeStatus, Customer, Failure, Refund, RefundFailure};

/// Why the ledger could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system refused.
    #[error("cannot {action} the ledger {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The ledger's file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process works on the same file; two would not see each other's keys.
    #[error("the ledger {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A whole line is not one of the ledger's.
    #[error("the ledger {} is damaged at line {line}", path.display())]
    Damaged {
        /// The ledger's file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event<'a> {
    /// A customer was created, and with it the stored response of its idempotency key.
    Customer(Cow<'a, Customer>),
    /// A charge ran to its end, and with it the stored response of its idempotency key. One line holds both, so a crash
    /// cannot come between the charge and its stored response.
    Charge(Cow<'a, Charge>),
    /// A request for a charge failed, and its idempotency key has a stored response all the same.
    Failure(Cow<'a, Failure>),
    /// As [`Event::Charge`], for a refund.
    Refund(Cow<'a, Refund>),
    /// As [`Event::Failure`], for a refund.
    RefundFailure(Cow<'a, RefundFailure>),
    /// All idempotency keys up to here are forgotten.
    KeysForgotten {},
    /// All that is recorded up to here is older by `ms`.
    Aged {
        /// By how much, in milliseconds.
        ms: u64,
    },
    /// The charges and refunds that are pending here have ended like this.
    Settled {
        /// The status of each of them.
        status: ChargeStatus,
    },
}

/// The open file, locked for this process.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// The bytes known to be whole lines.
    length: u64,
    /// Whether a write failed and its remains could not be cut off.
    torn: bool,
    line: Vec<u8>,
}

impl Journal {
    /// Opens or creates the file, and hands every event in it to `apply`, oldest first.
    pub(super) fn open(path: &Path, mut apply: impl FnMut(Event<'static>)) -> Result<Self, LedgerError> {
        let failed = |action| move |source| LedgerError::Io { action, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => LedgerError::InUse(path.to_owned()),
            TryLockError::Error(source) => failed("lock")(source),
        })?;

        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        let mut length = 0;
        for number in 1.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(failed("read"))?;
            if !line.ends_with(b"\n") {
                if read > 0 {
                    // Its write never returned, so no client has an answer that depends on it.
                    tracing::warn!(path = %path.display(), line = number, "cutting off a torn last line");
                    file.set_len(length).map_err(failed("truncate"))?;
                }
                break;
            }
            let event = serde_json::from_slice(&line).map_err(|source| LedgerError::Damaged {
                path: path.to_owned(),
                line: number,
                source,
            })?;
            apply(event);
            length += read as u64;
        }
        Ok(Self { file, path: path.to_owned(), length, torn: false, line })
    }

    /// Writes one line. On an error the event did not happen, and the file is as it was.
    pub(super) fn append(&mut self, event: &Event<'_>) -> Result<(), LedgerError> {
        self.try_append(event).map_err(|source| LedgerError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }

    fn try_append(&mut self, event: &Event<'_>) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        self.line.clear();
        serde_json::to_writer(&mut self.line, event)?;
        self.line.push(b'\n');
        if let Err(error) = self.file.write_all(&self.line) {
            // A full disk may have taken half a line; the next one must not be appended to it.
            self.torn = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += self.line.len() as u64;
        Ok(())
    }
}
