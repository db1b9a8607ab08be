//! Lets one message of a worker through at a time, and decides what happens to it.
//!
//! A message that only reads the database, prepares a statement or connects passes at once: it is no step of the model.
//! Every other message waits until the walk decides what happens to it; when it has been carried out, its reply waits
//! until the walk lets the worker go on. So between two of its steps a worker does not know the result of the last one
//! yet, and can be paused there for any time.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::wire::bug::with_length;
use crate::wire::{Boundary, Bugs, Carrier, Target, Upstream};

/// What happens to one message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// It is carried out and answered.
    Passes,
    /// It is carried out, and the connection breaks.
    ReplyLost,
    /// The connection breaks before it arrives.
    Dropped,
    /// It does not arrive, and this is the reply instead, as from a server that is too busy or from a proxy in between.
    Refused(fn() -> Vec<u8>),
    /// It is carried out, and the reply says something else.
    Reworded(fn(&str) -> String),
}

/// A message that waits for its fate.
pub(super) struct PendingMessage {
    pub(super) boundary: Boundary,
    decide: oneshot::Sender<Verdict>,
}

struct Verdict {
    fate: Fate,
    done: oneshot::Sender<()>,
    deliver: oneshot::Receiver<()>,
}

/// A reply that waits for its worker; it is delivered when this is dropped.
pub(super) struct HeldReply(#[expect(dead_code, reason = "its end is the signal")] oneshot::Sender<()>);

impl PendingMessage {
    /// Carries out the message's fate, and returns once that has happened.
    pub(super) async fn carry_out(self, fate: Fate) -> HeldReply {
        let (done, is_done) = oneshot::channel();
        let (held, deliver) = oneshot::channel();
        if self.decide.send(Verdict { fate, done, deliver }).is_ok() {
            // If no answer comes, the connection broke by itself, which the worker notices next.
            let _ = is_done.await;
        }
        HeldReply(held)
    }
}

/// The carrier of one worker's messages.
#[derive(Clone)]
pub(super) struct Gate {
    knocks: Option<mpsc::UnboundedSender<PendingMessage>>,
    bugs: Arc<Bugs>,
}

impl Gate {
    /// Returns a gate, and the queue in which messages wait.
    pub(super) fn new(bugs: &Arc<Bugs>) -> (Self, mpsc::UnboundedReceiver<PendingMessage>) {
        let (knocks, waiting) = mpsc::unbounded_channel();
        (Self { knocks: Some(knocks), bugs: Arc::clone(bugs) }, waiting)
    }

    /// Returns a gate that lets every message through; planted bugs still apply.
    pub(super) fn open(bugs: &Arc<Bugs>) -> Self {
        Self { knocks: None, bugs: Arc::clone(bugs) }
    }
}

impl Carrier for Gate {
    type Call = ();

    fn call(&self) {}

    fn bugs(&self) -> &Bugs {
        &self.bugs
    }

    fn keeps_backends(&self) -> bool {
        true
    }

    async fn carry(
        &self,
        boundary: Boundary,
        message: &[u8],
        upstream: &mut impl Upstream,
    ) -> io::Result<Option<Vec<u8>>> {
        let Some(knocks) = self.knocks.as_ref().filter(|_| is_a_step(&boundary)) else {
            return upstream.exchange(message).await.map(Some);
        };
        let (decide, decided) = oneshot::channel();
        if knocks.send(PendingMessage { boundary, decide }).is_err() {
            return Ok(None);
        }
        let Ok(Verdict { fate, done, deliver }) = decided.await else { return Ok(None) };
        let reply = match fate {
            Fate::Passes => Some(upstream.exchange(message).await?),
            Fate::ReplyLost => {
                upstream.exchange(message).await?;
                None
            }
            Fate::Dropped => None,
            Fate::Refused(reply) => Some(reply()),
            Fate::Reworded(reword) => {
                let reply = upstream.exchange(message).await?;
                Some(with_length(&reword(&String::from_utf8_lossy(&reply))))
            }
        };
        let _ = done.send(());
        let _ = deliver.await;
        Ok(reply)
    }
}

fn is_a_step(boundary: &Boundary) -> bool {
    match boundary.target {
        Target::Stripe => true,
        Target::Postgres => boundary
            .label
            .strip_prefix("execute ")
            .is_some_and(|does| ["insert ", "update ", "delete "].iter().any(|write| does.starts_with(write))),
    }
}

/// Returns an error of Postgres: out of memory, cancelled by an operator, lock not available, or too many connections.
pub(super) fn refused_by_postgres<const CODE: usize>() -> Vec<u8> {
    let code = ["53200", "57014", "55P03", "53300"][CODE];
    let fields = format!("SERROR\0VERROR\0C{code}\0Mrefused on purpose\0\0");
    let length = u32::try_from(fields.len() + 4).expect("short").to_be_bytes();
    [b"E".as_slice(), &length, fields.as_bytes(), b"Z\0\0\0\x05I"].concat()
}

/// Returns the answer of a proxy whose upstream is down.
pub(super) fn bad_gateway() -> Vec<u8> {
    with_length("HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\n\r\n<html>Bad Gateway</html>")
}

/// Returns a list of charges that decides nothing: its charges are pending, or it is an empty page that is not the
/// last.
pub(super) fn undecidable(reply: &str) -> String {
    if reply.contains("\"succeeded\"") {
        return reply.replace("\"succeeded\"", "\"pending\"");
    }
    let Some((before, _)) = reply.split_once("\"data\":[") else { return reply.to_owned() };
    let (head, _) = before.split_once("\r\n\r\n").expect("a head");
    format!("{head}\r\n\r\n{{\"object\":\"list\",\"has_more\":true,\"data\":[]}}")
}
