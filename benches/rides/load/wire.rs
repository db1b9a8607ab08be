//! One request and one answer at a time on a kept-alive connection, without an HTTP library.
//!
//! A library's client would take as much processor time as the server that it measures. This one sends bytes that were
//! rendered beforehand, with another key each time, and reads only what the measurement needs of an answer: the status,
//! the mark of a replay, and where the answer ends. It is not a general HTTP client: it can read only this server's
//! answers.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::keys::Key;

/// An answer has about 250 bytes.
const BUFFER: usize = 4096;
const BODY: &str = "origin_lat=37.7749&origin_lon=-122.4194&target_lat=34.0522&target_lon=-118.2437";
const PLACE: &str = "------------------------------------";

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) replayed: bool,
}

pub(crate) struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    request: Vec<u8>,
    key_at: usize,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = connect(address).await?;
        let request = format!(
            "POST /rides HTTP/1.1\r\nhost: {address}\r\nauthorization: user@example.com\r\n\
             idempotency-key: {PLACE}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let key_at = request.find(PLACE).expect("the request has a place for the key");
        Ok(Self { address, stream, request: request.into_bytes(), key_at, buffer: vec![0; BUFFER] })
    }

    /// Books a ride. Opens a broken connection again, so that the next request can be sent.
    pub(crate) async fn book(&mut self, key: &Key) -> std::io::Result<Answer> {
        self.request[self.key_at..self.key_at + key.len()].copy_from_slice(key);
        let answer = exchange(&mut self.stream, &self.request, &mut self.buffer).await;
        if answer.is_err() {
            self.stream = connect(self.address).await?;
        }
        answer
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> std::io::Result<Answer> {
    stream.write_all(request).await?;
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
            read => filled += read,
        }
        if let Some(answer) = parse(&buffer[..filled])? {
            return Ok(answer);
        }
    }
}

/// Returns the answer once all of its bytes are there.
fn parse(bytes: &[u8]) -> std::io::Result<Option<Answer>> {
    let Some(head_ends) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let strange = || Error::new(ErrorKind::InvalidData, "this is no answer of the API");
    let head = std::str::from_utf8(&bytes[..head_ends]).map_err(|_| strange())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)).and_then(|code| code.parse().ok());
    let (mut length, mut replayed) = (None, false);
    for line in lines {
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse::<usize>().ok(),
            Some(("idempotent-replayed", value)) => replayed = value == "true",
            _ => {}
        }
    }
    let (Some(status), Some(length)) = (status, length) else { return Err(strange()) };
    Ok((bytes.len() >= head_ends + 4 + length).then_some(Answer { status, replayed }))
}

/// Returns whether `/readyz` answers 200.
pub(crate) async fn is_ready(address: SocketAddr) -> bool {
    let ask = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    matches!(ask_once(address, &ask).await, Ok(Answer { status: 200, .. }))
}

/// Sets how long the sandbox takes for a charge; no faults.
pub(crate) async fn set_latency(sandbox: SocketAddr, latency: &str) {
    let body = format!("{{\"latency\":\"{latency}\"}}");
    let ask = format!(
        "PUT /_sandbox/faults HTTP/1.1\r\nhost: {sandbox}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask_once(sandbox, &ask).await.expect("the sandbox answers");
    assert!((200..300).contains(&answer.status), "the sandbox refused to be slow: {answer:?}");
}

async fn ask_once(address: SocketAddr, request: &str) -> std::io::Result<Answer> {
    let mut stream = connect(address).await?;
    exchange(&mut stream, request.as_bytes(), &mut vec![0; BUFFER]).await
}
