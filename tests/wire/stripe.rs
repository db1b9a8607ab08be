//! HTTP/1, as far as client and sandbox use it: messages with a `Content-Length`, one after the other.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Boundary, Carrier, Target, Upstream};
use crate::support::framing::Messages;

/// A connection to the sandbox.
struct Sandbox {
    from: Messages<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

/// Relays one connection from its start to its end.
pub(super) async fn relay(client: TcpStream, carrier: impl Carrier, sandbox: SocketAddr) -> io::Result<()> {
    let _open = carrier.call();
    let (from, mut to) = client.into_split();
    let mut client = Messages::new(from);
    let (from, to_sandbox) = TcpStream::connect(sandbox).await?.into_split();
    let mut sandbox = Sandbox { from: Messages::new(from), to: to_sandbox };
    while let Some(request) = client.next(whole).await? {
        let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
        // Method and path only: a query would make labels differ from run to run.
        let label = line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" ");
        let boundary = Boundary { target: Target::Stripe, label };
        let request = carrier.bugs().request(request);
        let Some(reply) = carrier.carry(boundary, &request, &mut sandbox).await? else { return Ok(()) };
        to.write_all(&carrier.bugs().reply(reply)).await?;
    }
    Ok(())
}

impl Upstream for Sandbox {
    async fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.to.write_all(request).await?;
        self.from.next(whole).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn terminate(&mut self) -> io::Result<Vec<u8>> {
        unreachable!("does not fit Stripe")
    }
}

/// Returns the length of head and body, once the head is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head is text").to_ascii_lowercase();
    assert!(!head.contains("transfer-encoding"), "neither side sends chunks: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Some(end + length.map_or(0, |length| length.trim().parse::<usize>().expect("a length")))
}
