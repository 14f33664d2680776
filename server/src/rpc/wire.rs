//! What gRPC puts into HTTP/2 headers and trailers: status, message, timeout, content type.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request};

use crate::status::{Code, Status};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_CONTENT: HeaderValue = HeaderValue::from_static("application/grpc");

/// Why a request is no gRPC call: the HTTP status beside the gRPC one.
pub(super) struct Refusal {
    pub(super) http: StatusCode,
    pub(super) status: Status,
}

/// Checks method, content type and encoding; the deadline that the client asked for.
pub(super) fn check_request(parts: &request::Parts) -> Result<Option<Duration>, Refusal> {
    let internal =
        |http, code, message: String| Err(Refusal { http, status: Status { code, message: message.into() } });
    if parts.method != Method::POST {
        let text =
            format!("Received a HEADERS frame with :method {:?} which should be POST", parts.method.as_str());
        return internal(StatusCode::METHOD_NOT_ALLOWED, Code::Internal, text);
    }
    let content = parts.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !is_grpc_content(content) {
        let text = format!("invalid gRPC request content-type {:?}", String::from_utf8_lossy(content));
        return internal(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, text);
    }
    if let Some(encoding) = parts.headers.get("grpc-encoding")
        && encoding != "identity"
        && !encoding.is_empty()
    {
        let name = String::from_utf8_lossy(encoding.as_bytes());
        let text = format!("grpc: Decompressor is not installed for grpc-encoding {name:?}");
        return internal(StatusCode::OK, Code::Unimplemented, text);
    }
    match parts.headers.get("grpc-timeout") {
        None => Ok(None),
        Some(value) => match parse_timeout(value.as_bytes()) {
            Some(timeout) => Ok(Some(timeout)),
            None => {
                let text = format!("malformed grpc-timeout: {:?}", String::from_utf8_lossy(value.as_bytes()));
                internal(StatusCode::BAD_REQUEST, Code::Internal, text)
            }
        },
    }
}

/// `application/grpc`, alone or with a `+` or `;` suffix.
fn is_grpc_content(value: &[u8]) -> bool {
    let base = b"application/grpc";
    value.len() >= base.len()
        && value[..base.len()].eq_ignore_ascii_case(base)
        && matches!(value.get(base.len()), None | Some(b'+' | b';'))
}

/// Up to eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The head of an answer that has messages.
pub(super) fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT);
    response
}

/// The head of an answer without messages: status and headers in one frame.
pub(super) fn trailers_only(http: StatusCode, status: &Status) -> Response<()> {
    let mut response = head();
    *response.status_mut() = http;
    put_status(response.headers_mut(), status);
    response
}

/// The trailers of a call that went well.
pub(super) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a call that failed after its head was sent.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    put_status(&mut trailers, status);
    trailers
}

fn put_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(&status.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// Leaves printable ASCII but `%` as it is.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte as char);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse_timeout(b"20m"), Some(Duration::from_millis(20)));
        for bad in [&b""[..], b"S", b"5", b"123456789S", b"-1S", b"5x"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("etcdserver: no leader"), "etcdserver: no leader");
        assert_eq!(percent_encode("100% \u{e9}\n"), "100%25 %C3%A9%0A");
    }

    #[test]
    fn content_types() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;x=y", "Application/GRPC"]
        {
            assert!(is_grpc_content(good.as_bytes()), "{good}");
        }
        for bad in ["", "application/grpcx", "application/json", "application/grp"] {
            assert!(!is_grpc_content(bad.as_bytes()), "{bad}");
        }
    }
}
