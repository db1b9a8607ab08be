//! The frontend/backend protocol of Postgres, as far as its framing goes: one untagged message first, then tagged ones.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

pub const PARSE: u8 = b'P';
pub const QUERY: u8 = b'Q';
pub const TERMINATE: u8 = b'X';

/// Returns the length of the untagged message at the start of these bytes.
pub fn untagged(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize)
}

/// Returns the length of the tagged message at the start of these bytes.
pub fn tagged(bytes: &[u8]) -> Option<usize> {
    untagged(bytes.get(1..)?).map(|length| length + 1)
}

/// Returns the text up to the next zero byte.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.iter().copied().take_while(|byte| *byte != 0).collect()).expect("UTF-8")
}

/// Returns the message with its SQL, if it has any, replaced by the result of `rewrite`.
pub fn with_sql(message: Vec<u8>, rewrite: impl FnOnce(&str) -> Option<String>) -> Vec<u8> {
    let start = match message[0] {
        QUERY => 5,
        PARSE => 5 + text(&message[5..]).len() + 1,
        _ => return message,
    };
    let sql = text(&message[start..]);
    let Some(rewritten) = rewrite(&sql) else { return message };
    let mut payload = message[5..start].to_vec();
    payload.extend_from_slice(rewritten.as_bytes());
    payload.extend_from_slice(&message[start + sql.len()..]);
    let length = u32::try_from(payload.len() + 4).expect("a short message").to_be_bytes();
    [&[message[0]], length.as_slice(), payload.as_slice()].concat()
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A TCP or Unix socket.
pub type Socket = Box<dyn Stream>;

/// Opens a connection to this server, on which nothing has been sent yet.
pub async fn dial(server: &tokio_postgres::Config) -> io::Result<Socket> {
    let port = server.get_ports()[0];
    Ok(match &server.get_hosts()[0] {
        Host::Tcp(host) => Box::new(TcpStream::connect((host.as_str(), port)).await?),
        Host::Unix(dir) => Box::new(UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await?),
    })
}

/// Cuts a stream of bytes into messages.
pub struct Messages<R> {
    source: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub fn new(source: R) -> Self {
        Self { source, buffer: Vec::new() }
    }

    /// Returns the next message, or `None` at the end of the stream. `length` returns the length of the message at the
    /// start of the bytes, once they show it. Dropping the future loses nothing.
    pub async fn next(&mut self, length: impl Fn(&[u8]) -> Option<usize>) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = length(&self.buffer).filter(|length| *length <= self.buffer.len()) {
                return Ok(Some(self.buffer.drain(..length).collect()));
            }
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
