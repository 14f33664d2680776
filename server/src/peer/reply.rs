//! Answers of the peer port, in the shape of Go's HTTP server: an error is a line of text.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use super::link::Foreign;
use super::stream::Reply;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: StatusCode,
    pub(super) text: String,
    /// The only method that would do.
    pub(super) allow: Option<&'static str>,
    json: bool,
}

impl Refusal {
    pub(super) fn new(code: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal { code, text: text.into(), allow: None, json: false }
    }

    pub(super) fn method(allow: Option<&'static str>) -> Refusal {
        Refusal { allow, ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") }
    }

    /// An error as etcd's own HTTP errors are: an object with a message.
    pub(super) fn json(code: StatusCode, text: &str) -> Refusal {
        Refusal { json: true, ..Refusal::new(code, text) }
    }

    pub(super) fn reply(self) -> Response<Reply> {
        let mut response = if self.json {
            let text = serde_json::json!({ "message": self.text }).to_string();
            with_type("application/json", text)
        } else {
            let mut response = with_type("text/plain; charset=utf-8", self.text + "\n");
            let nosniff = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
            response
        };
        *response.status_mut() = self.code;
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<Foreign> for Refusal {
    /// P2. Whoever is told 403 takes itself for removed: nothing else is answered so (P4).
    fn from(foreign: Foreign) -> Refusal {
        Refusal::json(StatusCode::FORBIDDEN, &foreign.to_string())
    }
}

/// 200 with a body of this type.
pub(super) fn with_type(content: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    response
}

/// 204.
pub(super) fn no_content() -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Adds a header whose value is known to fit one.
pub(super) fn add(response: &mut Response<Reply>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
