//! URLs of listeners and members, checked as etcd checks them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `scheme://host:port`, or a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// http, https, unix or unixs.
    pub scheme: String,
    /// `host:port`, or a path for unix sockets.
    pub address: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.address)
    }
}

impl Url {
    /// Reads one URL.
    pub fn parse(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let scheme_error = || format!("URL scheme must be http, https, unix, or unixs: {text}");
        let (scheme, address) = text.split_once("://").ok_or_else(scheme_error)?;
        let scheme = scheme.to_ascii_lowercase();
        match &*scheme {
            "unix" | "unixs" => return Ok(Url { scheme, address: address.to_owned() }),
            "http" | "https" => {}
            _ => return Err(scheme_error()),
        }
        let end = address.find(['/', '?', '#']).unwrap_or(address.len());
        if split_host_port(&address[..end]).is_none() {
            return Err(format!("URL address does not have the form \"host:port\": {text}"));
        }
        if end < address.len() {
            return Err(format!("URL must not contain a path: {text}"));
        }
        Ok(Url { scheme, address: address.to_owned() })
    }

    /// Host without brackets, port. None for unix sockets.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        match &*self.scheme {
            "http" | "https" => split_host_port(&self.address),
            _ => None,
        }
    }

    /// For what a certificate must be good there: the host without brackets, which a unix socket has in its name too.
    pub fn host(&self) -> &str {
        match self.host_port() {
            Some((host, _)) => host,
            None => {
                let name = self.address.rsplit('/').next().unwrap_or_default();
                name.split_once(':').map_or(name, |(host, _)| host)
            }
        }
    }

    /// Whether it is one of TLS.
    pub fn is_tls(&self) -> bool {
        ["https", "unixs"].contains(&&*self.scheme)
    }

    /// The address to listen on: an IP address or localhost.
    pub fn bind_address(&self) -> Result<SocketAddr, String> {
        let not_ip = || format!("expected IP in URL for binding ({self})");
        let (host, port) = self.host_port().ok_or_else(not_ip)?;
        let ip = match host {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().map_err(|_| not_ip())?,
        };
        Ok(SocketAddr::new(ip, port))
    }
}

/// Host without brackets, and port.
pub(super) fn split_host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    if port.starts_with('+') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

/// A comma-separated list, sorted as etcd sorts it.
pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
    if text.is_empty() {
        return Err("no valid URLs given".to_owned());
    }
    let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort_by_key(Url::to_string);
    Ok(urls)
}

/// The list as text.
pub fn join(urls: &[Url]) -> String {
    urls.iter().map(Url::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        let urls = parse_list("http://localhost:2379,http://[::1]:1, https://10.0.0.1:80").unwrap();
        assert_eq!(join(&urls), "http://[::1]:1,http://localhost:2379,https://10.0.0.1:80");
        assert_eq!(urls[0].bind_address().unwrap().to_string(), "[::1]:1");
        assert_eq!(urls[1].bind_address().unwrap().to_string(), "127.0.0.1:2379");
        assert_eq!(Url::parse("unix://a/b").unwrap().host_port(), None);
    }

    #[test]
    fn refuses() {
        for (text, error) in [
            ("", "no valid URLs given"),
            ("localhost:2379", "URL scheme must be http, https, unix, or unixs: localhost:2379"),
            ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://a:99999", "URL address does not have the form \"host:port\": http://a:99999"),
            ("http://a:1/", "URL must not contain a path: http://a:1/"),
        ] {
            assert_eq!(parse_list(text).unwrap_err(), error);
        }
        let error = Url::parse("http://example.com:1").unwrap().bind_address().unwrap_err();
        assert_eq!(error, "expected IP in URL for binding (http://example.com:1)");
    }
}
