//! A mail server with scripted replies.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The point of a session at which the server does what was scripted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Mail,
    Recipient,
    /// After the mail itself.
    End,
}

/// What the server does at that point.
#[derive(Debug, Clone, Copy)]
pub enum Reply {
    /// Sends this line and goes on.
    Say(&'static str),
    /// Closes the connection without a reply.
    HangUp,
    /// Accepts the mail, if there is one, and closes the connection without a reply.
    TakeAndHangUp,
    /// Sends nothing more.
    Hang,
}

/// A mail that was accepted.
#[derive(Debug, Clone)]
pub struct Received {
    pub from: String,
    pub to: String,
    pub mail: String,
}

#[derive(Default)]
struct State {
    script: VecDeque<(At, Reply)>,
    received: Vec<Received>,
    logins: Vec<String>,
    connections: usize,
}

pub struct MailServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl MailServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                served.lock().expect("no panic").connections += 1;
                let served = Arc::clone(&served);
                // A client may close the connection at any time.
                tokio::spawn(async move { converse(client, served).await.unwrap_or_default() });
            }
        });
        Self { address, state, task }
    }

    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// Sets what the server does in the next sessions that reach these points, in order.
    pub fn script(&self, script: &[(At, Reply)]) {
        self.state.lock().expect("no panic").script.extend(script);
    }

    pub fn received(&self) -> Vec<Received> {
        self.state.lock().expect("no panic").received.clone()
    }

    /// Returns the `AUTH` lines, as received.
    pub fn logins(&self) -> Vec<String> {
        self.state.lock().expect("no panic").logins.clone()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().expect("no panic").connections
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Conversation {
    lines: Lines<BufReader<OwnedReadHalf>>,
    to: OwnedWriteHalf,
    state: Arc<Mutex<State>>,
}

impl Conversation {
    async fn say(&mut self, line: &str) -> io::Result<()> {
        self.to.write_all(format!("{line}\r\n").as_bytes()).await
    }

    /// Does what was scripted, or sends `otherwise`. Returns `false` if that was the end of the session.
    async fn at(&mut self, at: At, otherwise: &str) -> io::Result<bool> {
        let scripted = {
            let mut state = self.state.lock().expect("no panic");
            let mine = state.script.front().is_some_and(|(when, _)| *when == at);
            if mine { state.script.pop_front().map(|(_, reply)| reply) } else { None }
        };
        match scripted.unwrap_or(Reply::Say("")) {
            Reply::Say("") => self.say(otherwise).await?,
            Reply::Say(line) => self.say(line).await?,
            Reply::HangUp | Reply::TakeAndHangUp => return Ok(false),
            Reply::Hang => std::future::pending().await,
        }
        Ok(true)
    }

    /// Returns whether the mail will be accepted: no scripted reply refuses or loses it.
    fn will_take(&self) -> bool {
        let state = self.state.lock().expect("no panic");
        let next = state.script.front().filter(|(at, _)| *at == At::End);
        next.is_none_or(|(_, reply)| matches!(reply, Reply::TakeAndHangUp))
    }
}

async fn converse(client: TcpStream, state: Arc<Mutex<State>>) -> io::Result<()> {
    let (from, to) = client.into_split();
    let mut conversation = Conversation { lines: BufReader::new(from).lines(), to, state };
    conversation.say("220 test").await?;
    let (mut sender, mut recipient) = (String::new(), String::new());
    while let Some(line) = conversation.lines.next_line().await? {
        let goes_on = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => {
                conversation.say("250-test").await?;
                conversation.say("250 AUTH PLAIN").await?;
                true
            }
            "AUTH" => {
                conversation.state.lock().expect("no panic").logins.push(line.clone());
                conversation.say("235 welcome").await?;
                true
            }
            "MAIL" => {
                sender = address(&line);
                conversation.at(At::Mail, "250 go on").await?
            }
            "RCPT" => {
                recipient = address(&line);
                conversation.at(At::Recipient, "250 go on").await?
            }
            "DATA" => {
                conversation.say("354 go on").await?;
                let mut mail = String::new();
                while let Some(line) = conversation.lines.next_line().await?
                    && line != "."
                {
                    mail.push_str(line.strip_prefix('.').unwrap_or(&line));
                    mail.push_str("\r\n");
                }
                if conversation.will_take() {
                    let received = Received { from: sender.clone(), to: recipient.clone(), mail };
                    conversation.state.lock().expect("no panic").received.push(received);
                }
                conversation.at(At::End, "250 taken").await?
            }
            "QUIT" => {
                conversation.say("221 bye").await?;
                false
            }
            _ => {
                conversation.say("502 what?").await?;
                true
            }
        };
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// Returns the text in angle brackets.
fn address(line: &str) -> String {
    line.split(['<', '>']).nth(1).unwrap_or_default().to_owned()
}
