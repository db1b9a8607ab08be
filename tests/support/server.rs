//! A third-party server, private to one test: started on a free port, killed when the test ends, however it ends.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use super::app::TempDir;
use super::process::free_port;

pub struct Server {
    pub address: SocketAddr,
    child: Child,
    dir: TempDir,
    binary: &'static str,
    package: &'static str,
    arguments: Vec<String>,
}

impl Server {
    /// Starts `binary` of Debian's `package` with the arguments that `arguments` returns for its address and directory.
    pub fn start(
        binary: &'static str,
        package: &'static str,
        arguments: impl FnOnce(SocketAddr, &Path) -> Vec<String>,
    ) -> Self {
        let (address, dir) = (free_port(), TempDir::new());
        let arguments = arguments(address, dir.path());
        let child = spawn(binary, package, &arguments, dir.path());
        let mut server = Self { address, child, dir, binary, package, arguments };
        server.until_it_listens();
        server
    }

    /// Kills the server without a shutdown, as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Starts it again after [`Server::kill`], with the same address and files.
    pub fn restart(&mut self) {
        self.child = spawn(self.binary, self.package, &self.arguments, self.dir.path());
        self.until_it_listens();
    }

    /// Stops the process without ending it (SIGSTOP): its connections stay open, but it does nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("signal");
    }

    fn until_it_listens(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait().expect("wait") {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("{} ended with {status}: {log}", self.binary);
            }
            assert!(began.elapsed() < PATIENCE, "{} does not listen on {}", self.binary, self.address);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &str, package: &str, arguments: &[String], dir: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    // Debian installs nats-server in a directory that is in root's `PATH` only.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let spawned = Command::new(binary)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn();
    spawned.unwrap_or_else(|error| panic!("cannot run {binary} ({error}): apt-get install -y {package}"))
}
