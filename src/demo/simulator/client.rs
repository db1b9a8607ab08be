//! The API as a client sees it.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A client waits this long for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer, in bytes. A usual one is a sentence.
const ANSWER_BYTES: usize = 16 * 1024;

/// Sends requests over HTTP.
#[derive(Debug, Clone)]
pub(super) struct ApiClient {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

/// A request, which a client may send more than once.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) email: &'static str,
    pub(super) form: String,
    pub(super) raise_error: bool,
}

/// An answer of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The header `Location`.
    pub(super) location: Option<String>,
    body: Bytes,
}

impl Answer {
    /// Returns whether each repetition of the request will get this answer.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.status, 201 | 402)
    }
}

impl ApiClient {
    pub(super) fn new(api_base: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { http, base: api_base.trim_end_matches('/').to_owned() }
    }

    pub(super) async fn post(&self, asked: &Asked) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut form = asked.form.clone();
        if asked.raise_error {
            form.push_str("&raise_error=true");
        }
        let request = Request::post(format!("{}{}", self.base, asked.path))
            .header(AUTHORIZATION, asked.email)
            .header("idempotency-key", &asked.key)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))?;
        let exchange = async {
            let response = self.http.request(request).await?;
            let status = response.status().as_u16();
            let location =
                response.headers().get(LOCATION).and_then(|place| place.to_str().ok()).map(str::to_owned);
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
            Ok(Answer { status, location, body })
        };
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await?
    }
}
