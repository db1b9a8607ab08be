//! HTTP as a client of the API sees it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use uuid::Uuid;

pub const FORM: &str = "application/x-www-form-urlencoded";
pub const GOOD_USER: &str = "user@example.com";
pub const DECLINED_USER: &str = "user-bad-source@example.com";
pub const RIDE: &str = "origin_lat=37.7749&origin_lon=-122.4194&target_lat=34.0522&target_lon=-118.2437";

/// Longer than the API may take for any answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than `/readyz` takes.
const SOON: Duration = Duration::from_secs(2);

/// An answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }

    /// Returns the ride that a 201 says is there.
    pub fn ride_id(&self) -> i64 {
        assert_eq!(self.status, 201, "{self:?}");
        let id = self.header("location").and_then(|location| location.strip_prefix("/rides/"));
        id.expect("a ride").parse().expect("its id")
    }

    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

/// A client with a pool of connections.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

/// A request to book a ride; by default a good one with a new key.
#[derive(Debug, Clone)]
pub struct Post {
    pub headers: Vec<(&'static str, String)>,
    pub path: Cow<'static, str>,
    pub body: Bytes,
}

impl Default for Post {
    fn default() -> Self {
        Self::form(RIDE)
    }
}

impl Post {
    pub fn new(content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![
            ("authorization", GOOD_USER.to_owned()),
            ("idempotency-key", new_key()),
            ("content-type", content_type.to_owned()),
        ];
        Self { headers, path: "/rides".into(), body: body.into() }
    }

    pub fn form(body: impl Into<Bytes>) -> Self {
        Self::new(FORM, body)
    }

    /// Returns a request to refund this ride.
    pub fn refund(ride_id: i64) -> Self {
        Self { path: format!("/rides/{ride_id}/refund").into(), ..Self::form("") }
    }

    pub fn key(self, key: &str) -> Self {
        self.without("idempotency-key").with("idempotency-key", key)
    }

    pub fn user(self, email: &str) -> Self {
        self.without("authorization").with("authorization", email)
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| *header != name);
        self
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn raising(mut self) -> Self {
        self.body = [&self.body[..], b"&raise_error=true"].concat().into();
        self
    }
}

pub fn new_key() -> String {
    Uuid::new_v4().to_string()
}

impl Http {
    pub fn new(address: SocketAddr) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), base: format!("http://{address}") }
    }

    pub async fn post(&self, post: Post) -> Answer {
        self.try_post(post).await.expect("an answer")
    }

    pub async fn try_post(&self, post: Post) -> Result<Answer, String> {
        let mut request = Request::post(format!("{}{}", self.base, post.path));
        for (name, value) in &post.headers {
            request = request.header(*name, value);
        }
        self.send(request.body(Full::from(post.body)).expect("a request")).await
    }

    /// Returns whether `/readyz` answers 200 within [`SOON`].
    pub async fn is_ready(&self) -> bool {
        let request = Request::get(format!("{}/readyz", self.base)).body(Full::default()).expect("a request");
        let answered = tokio::time::timeout(SOON, self.send(request)).await;
        matches!(answered, Ok(Ok(answer)) if answer.status == 200)
    }

    pub async fn call(&self, method: Method, path: &str, body: &str) -> Answer {
        let uri = format!("{}{path}", self.base);
        let request = Request::builder().method(method).uri(uri).header("authorization", "Bearer sk_test");
        self.send(request.body(Full::from(body.to_owned())).expect("a request")).await.expect("an answer")
    }

    /// Sends a request with a time limit: where a killed process listened, another may listen next and never answer.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| format!("{error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }
}
