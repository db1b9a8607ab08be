//! The proxy for Postgres: which bytes are one message, and how it is labelled.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use super::{Boundary, Carrier, Target, Upstream};
use crate::support::cluster;
use crate::support::framing::{self, Messages, PARSE, QUERY, Socket, TERMINATE, tagged, text, untagged};

/// Backends whose clients are gone, with their greeting to the first client.
pub(super) type Spares = Arc<Mutex<Vec<(Backend, Vec<u8>)>>>;

/// One backend.
pub(super) struct Backend {
    from: Messages<ReadHalf<Socket>>,
    to: WriteHalf<Socket>,
    /// Its process id, known once the backend has sent it.
    pid: i32,
    server: tokio_postgres::Config,
}

/// Relays one connection from its start to its end.
pub(super) async fn relay(
    client: TcpStream,
    carrier: impl Carrier,
    server: tokio_postgres::Config,
    spares: Spares,
) -> io::Result<()> {
    let (from, mut to) = client.into_split();
    let mut client = Messages::new(from);
    let Some(startup) = client.next(untagged).await? else { return Ok(()) };
    let spare = spares.lock().expect("no panic while locked").pop();
    let (mut backend, greeting) = match spare {
        Some((mut backend, greeting)) => {
            backend.exchange(b"Q\0\0\0\x10DISCARD ALL\0").await?;
            (backend, greeting)
        }
        None => {
            let mut backend = Backend::connect(server).await?;
            let greeting = backend.exchange(&startup).await?;
            (backend, greeting)
        }
    };
    to.write_all(&greeting).await?;

    let mut statements = Statements::default();
    let mut flight = Vec::new();
    loop {
        let message = tokio::select! {
            message = client.next(tagged) => message?,
            unasked = backend.from.next(tagged) => match unasked? {
                Some(notice) => {
                    to.write_all(&notice).await?;
                    continue;
                }
                None => return Ok(()),
            },
        };
        let Some(message) = message else { return Ok(()) };
        let tag = message[0];
        flight.push(framing::with_sql(message, |sql| carrier.bugs().sql(sql)));
        match tag {
            QUERY | SYNC => {
                let label = statements.label(&flight);
                let boundary = Boundary { target: Target::Postgres, label: label.clone() };
                let bytes = std::mem::take(&mut flight).concat();
                let Some(reply) = carrier.carry(boundary, &bytes, &mut backend).await? else {
                    if carrier.keeps_backends() {
                        spares.lock().expect("no panic while locked").push((backend, greeting));
                    }
                    return Ok(());
                };
                carrier.bugs().answered(&label, &reply);
                to.write_all(&reply).await?;
            }
            TERMINATE => return backend.to.write_all(&flight.concat()).await,
            _ => {}
        }
    }
}

const BIND: u8 = b'B';
const SYNC: u8 = b'S';
const BACKEND_KEY_DATA: u8 = b'K';
const READY_FOR_QUERY: u8 = b'Z';

impl Backend {
    async fn connect(server: tokio_postgres::Config) -> io::Result<Self> {
        let (from, to) = tokio::io::split(framing::dial(&server).await?);
        Ok(Self { from: Messages::new(from), to, pid: 0, server })
    }
}

impl Upstream for Backend {
    async fn exchange(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        self.to.write_all(message).await?;
        let mut reply = Vec::new();
        while let Some(message) = self.from.next(tagged).await? {
            reply.extend_from_slice(&message);
            match message[0] {
                BACKEND_KEY_DATA => {
                    self.pid = message[5..].first_chunk().map_or(0, |pid| i32::from_be_bytes(*pid));
                }
                READY_FOR_QUERY => break,
                _ => {}
            }
        }
        Ok(reply)
    }

    async fn terminate(&mut self) -> io::Result<Vec<u8>> {
        let administrator = cluster::connect(&self.server).await;
        administrator.execute("SELECT pg_terminate_backend($1)", &[&self.pid]).await.expect("terminate");
        let mut last_words = Vec::new();
        // A reset ends the connection, too.
        while let Ok(Some(message)) = self.from.next(tagged).await {
            last_words.extend(message);
        }
        Ok(last_words)
    }
}

/// The statements that this connection has prepared, by their names.
#[derive(Default)]
struct Statements(HashMap<String, String>);

impl Statements {
    /// Returns a readable label of a flight: of the last of its messages that has one.
    fn label(&mut self, flight: &[Vec<u8>]) -> String {
        let mut label = String::from("sync");
        for message in flight {
            let payload = &message[5..];
            match message[0] {
                QUERY => label = format!("query {}", summary(&text(payload))),
                PARSE => {
                    let name = text(payload);
                    let sql = summary(&text(&payload[name.len() + 1..]));
                    label = format!("prepare {sql}");
                    self.0.insert(name, sql);
                }
                BIND => {
                    let portal = text(payload);
                    let name = text(&payload[portal.len() + 1..]);
                    label = format!("execute {}", self.0.get(&name).map_or("?", String::as_str));
                }
                _ => {}
            }
        }
        label
    }
}

/// Returns the tables that a statement writes, because they identify the program's statements; else its first words.
fn summary(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let mut writes: Vec<String> = words
        .windows(3)
        .filter_map(|words| match words {
            ["INSERT", "INTO", table] => Some(format!("insert {table}")),
            ["DELETE", "FROM", table] => Some(format!("delete {table}")),
            // Neither `FOR UPDATE)`, `FOR UPDATE SKIP LOCKED` nor `DO UPDATE SET`.
            ["UPDATE", table, _] if table.starts_with(|c: char| c.is_ascii_lowercase()) => {
                Some(format!("update {table}"))
            }
            _ => None,
        })
        .collect();
    writes.dedup();
    if writes.is_empty() { words.iter().take(6).copied().collect::<Vec<_>>().join(" ") } else { writes.join(" + ") }
}
