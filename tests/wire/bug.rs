//! Planted bugs: messages from the program or to it are changed on their way, as if the program had been written
//! differently. So the program needs no switch for its own tests.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

/// Turns a whole message into another one.
pub type Rewrite = fn(&str) -> String;

/// A bug that is planted for a test to find.
#[derive(Debug, Clone, Copy)]
pub enum Bug {
    /// In statements to Postgres, each of the first texts becomes the second. Runs of white space count as one space.
    Sql(&'static [(&'static str, &'static str)]),
    /// Changes requests to Stripe.
    ToStripe(Rewrite),
    /// Changes Stripe's replies.
    FromStripe(Rewrite),
}

/// The bug that is planted now, if any.
#[derive(Default)]
pub struct Bugs(Mutex<Option<Planted>>);

/// A bug, and what it has changed so far.
struct Planted {
    bug: Bug,
    /// Parts of it that changed something.
    seen: BTreeSet<usize>,
    /// Postgres' error if it does not understand a changed statement: then this is no bug but a typing error.
    refused: Option<String>,
}

impl Bugs {
    /// Applies `bug` to all messages from now on.
    pub fn plant(&self, bug: Bug) {
        *self.planted() = Some(Planted { bug, seen: BTreeSet::new(), refused: None });
    }

    /// Removes the bug: all messages pass unchanged again.
    pub fn remove_bug(&self) {
        *self.planted() = None;
    }

    /// Returns why the planted bug has had no effect, if so: the test has then not shown that the bug is found.
    pub fn not_planted(&self) -> Option<String> {
        let planted = self.planted();
        let Some(Planted { bug, seen, refused }) = &*planted else { return Some("no bug".to_owned()) };
        let parts = if let Bug::Sql(parts) = bug { parts.len() } else { 1 };
        let unseen =
            || (0..parts).find(|part| !seen.contains(part)).map(|part| format!("part {part} matched nothing"));
        refused.clone().or_else(unseen)
    }

    /// Returns the statement with the bug in it; `None` if the bug does not change it.
    pub(super) fn sql(&self, sql: &str) -> Option<String> {
        let mut planted = self.planted();
        let Some(Planted { bug: Bug::Sql(parts), seen, .. }) = &mut *planted else { return None };
        let mut rewritten = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut changed = false;
        for (part, (from, to)) in parts.iter().enumerate() {
            if rewritten.contains(from) {
                rewritten = rewritten.replace(from, to);
                seen.insert(part);
                changed = true;
            }
        }
        changed.then_some(rewritten)
    }

    pub(super) fn request(&self, request: Vec<u8>) -> Vec<u8> {
        self.http(request, |bug| if let Bug::ToStripe(rewrite) = bug { rewrite } else { unchanged })
    }

    pub(super) fn reply(&self, reply: Vec<u8>) -> Vec<u8> {
        self.http(reply, |bug| if let Bug::FromStripe(rewrite) = bug { rewrite } else { unchanged })
    }

    /// Returns the message, rewritten if the bug is for it, with the content length that fits.
    fn http(&self, message: Vec<u8>, rewrite: impl Fn(Bug) -> Rewrite) -> Vec<u8> {
        let mut planted = self.planted();
        let Some(planted) = &mut *planted else { return message };
        let text = String::from_utf8(message).expect("UTF-8");
        let rewritten = rewrite(planted.bug)(&text);
        if rewritten == text {
            return text.into_bytes();
        }
        planted.seen.insert(0);
        with_length(&rewritten)
    }

    /// Records Postgres' answer to a statement if it is an error of class 42: Postgres does not understand the
    /// statement.
    pub(super) fn answered(&self, label: &str, reply: &[u8]) {
        if !reply.windows(4).any(|bytes| bytes == b"\0C42") {
            return;
        }
        if let Some(planted) = &mut *self.planted() {
            planted.refused.get_or_insert_with(|| format!("{label}: {}", String::from_utf8_lossy(reply)));
        }
    }

    fn planted(&self) -> MutexGuard<'_, Option<Planted>> {
        self.0.lock().expect("no panic while locked")
    }
}

fn unchanged(message: &str) -> String {
    message.to_owned()
}

/// Returns the HTTP message with the content length that fits.
pub fn with_length(message: &str) -> Vec<u8> {
    let (head, body) = message.split_once("\r\n\r\n").expect("a head");
    let head: String = head
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"))
        .map(|line| format!("{line}\r\n"))
        .collect();
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
