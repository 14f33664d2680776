//! The flags that let a member find its cluster: the discovery service, and DNS SRV records.

use std::time::Duration;

use super::url::Url;
use super::{Given, cluster_of, duration};

/// Members by name, as [`super::Config::initial_cluster`] has them.
pub type Members = Vec<(String, Vec<Url>)>;

/// Where the initial cluster comes from at a first start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// From `--initial-cluster`.
    Off,
    /// From another etcd cluster.
    Service(Box<Service>),
    /// From SRV records.
    Srv(Srv),
}

/// How to reach a discovery service.
#[derive(Clone, PartialEq, Eq)]
pub struct Service {
    /// Names the cluster within the service, and goes into the ids.
    pub token: String,
    /// `host:port`, with or without `http://`; tried in turn.
    pub endpoints: Vec<String>,
    /// For a connection to one endpoint.
    pub dial_timeout: Duration,
    /// For one request.
    pub request_timeout: Duration,
    /// Time without an event after which the connection is probed.
    pub keepalive_time: Duration,
    /// For the answer to a probe.
    pub keepalive_timeout: Duration,
    /// User and password, where the service asks for them.
    pub user: Option<(String, String)>,
    /// Half the pause after the first failure; it doubles, eight times at most.
    pub backoff: Duration,
}

impl std::fmt::Debug for Service {
    /// Leaves the password out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("token", &self.token).field("endpoints", &self.endpoints).finish()
    }
}

/// Which SRV records to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The domain.
    pub domain: String,
    /// Suffix of the service's name; empty for none.
    pub service_name: String,
}

impl Discovery {
    /// The token that goes into the ids.
    pub(super) fn token(&self, given: &Given) -> String {
        match self {
            Discovery::Service(service) => service.token.clone(),
            Discovery::Off | Discovery::Srv(_) => given.text("initial-cluster-token").to_owned(),
        }
    }
}

/// What finds the initial cluster, and the cluster as far as the flags have it, for the member with this name and these
/// URLs.
pub(super) fn read(given: &Given, name: &str, urls: &[Url]) -> Result<(Discovery, Members), String> {
    let discovery = read_flags(given)?;
    let given_cluster = given.is_set("initial-cluster");
    let replaced = ["discovery-srv", "discovery-srv-name"].iter().any(|name| !given.text(name).is_empty());
    let cluster = match &discovery {
        Discovery::Off | Discovery::Srv(_) if given_cluster => {
            let cluster = cluster_of(given.text("initial-cluster"));
            cluster.map_err(|error| format!("error setting up initial cluster: {error}"))?
        }
        Discovery::Off | Discovery::Srv(_) if replaced => Vec::new(),
        // Until it has registered, a member knows itself alone.
        _ => vec![(name.to_owned(), urls.to_vec())],
    };
    Ok((discovery, cluster))
}

/// Reads the flags and checks them against each other, in etcd's order and words.
fn read_flags(given: &Given) -> Result<Discovery, String> {
    if given.text("discovery-fallback") == "proxy" {
        return Err(
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"".to_owned()
        );
    }
    let (endpoints, domain) = (given.text("discovery-endpoints"), given.text("discovery-srv"));
    let token = given.text("discovery-token");
    let listed = given.is_set("initial-cluster") && !given.text("initial-cluster").is_empty();
    let ways = [!endpoints.is_empty(), !domain.is_empty(), listed].iter().filter(|given| **given).count();
    if ways > 1 {
        return Err("multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\", \
                    \"discovery-endpoints\" or \"discovery-srv\""
            .to_owned());
    }
    if token.is_empty() != endpoints.is_empty() {
        return Err("both --discovery-token and --discovery-endpoints must be set".to_owned());
    }
    if !domain.is_empty() {
        let (domain, service_name) = (domain.to_owned(), given.text("discovery-srv-name").to_owned());
        return Ok(Discovery::Srv(Srv { domain, service_name }));
    }
    if endpoints.is_empty() {
        return Ok(Discovery::Off);
    }
    let endpoints: Vec<String> = endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
    endpoints.iter().try_for_each(|endpoint| check_endpoint(endpoint))?;
    let credentials = ["discovery-user", "discovery-password"].map(|name| given.text(name).to_owned());
    let user = match credentials {
        [user, password] if !user.is_empty() && !password.is_empty() => Some((user, password)),
        _ => None,
    };
    Ok(Discovery::Service(Box::new(Service {
        token: token.to_owned(),
        endpoints,
        dial_timeout: duration(given, "discovery-dial-timeout"),
        request_timeout: duration(given, "discovery-request-timeout"),
        keepalive_time: duration(given, "discovery-keepalive-time"),
        keepalive_timeout: duration(given, "discovery-keepalive-timeout"),
        user,
        backoff: Duration::from_secs(1),
    })))
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    if endpoint.is_empty() {
        return Err("--discovery-endpoints must not contain empty endpoints".to_owned());
    }
    let address = match endpoint.split_once("://") {
        None => endpoint,
        Some(("http", address)) => address,
        Some((scheme, _)) => {
            return Err(format!(
                "--discovery-endpoints: {endpoint}: {scheme} is not supported yet by this version of Trilith: only \
                 http is"
            ));
        }
    };
    match super::url::split_host_port(address) {
        Some((host, _)) if !host.is_empty() => Ok(()),
        _ => Err(format!("--discovery-endpoints: {endpoint} does not have the form \"host:port\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Refusal};
    use super::*;

    fn read(args: &[&str]) -> Result<Config, String> {
        match Config::read(args.iter().map(std::ffi::OsString::from), []) {
            Ok(config) => Ok(config),
            Err(Refusal::Config(error)) => Err(error),
            Err(other) => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn flags_against_each_other() {
        let conflict = "multiple discovery or bootstrap flags are set.";
        let half = "both --discovery-token and --discovery-endpoints must be set";
        for (args, error) in [
            (&["--discovery-token=t"][..], half),
            (&["--discovery-endpoints=a:1"], half),
            (&["--discovery-srv=example.com", "--initial-cluster=a=http://a:1"], conflict),
            (&["--discovery-srv=x.org", "--discovery-endpoints=a:1", "--discovery-token=t"], conflict),
            (
                &["--discovery-endpoints=a:1, ", "--discovery-token=t"],
                "--discovery-endpoints must not contain empty endpoints",
            ),
            (
                &["--discovery-endpoints=a", "--discovery-token=t"],
                "--discovery-endpoints: a does not have the form \"host:port\"",
            ),
            (
                &["--discovery-endpoints=ftp://a:1", "--discovery-token=t"],
                "--discovery-endpoints: ftp://a:1: ftp",
            ),
            (
                &["--discovery-fallback=proxy"],
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
            ),
        ] {
            let got = read(args).unwrap_err();
            assert!(got.starts_with(error), "{got}");
        }
    }

    #[test]
    fn what_was_given_is_what_is_used() {
        let config = read(&["--name=a"]).unwrap();
        assert_eq!((config.discovery, config.initial_cluster.len()), (Discovery::Off, 1));
        let config = read(&["--discovery-srv=example.com", "--discovery-srv-name=x"]).unwrap();
        let (domain, service_name) = ("example.com".to_owned(), "x".to_owned());
        assert_eq!(config.discovery, Discovery::Srv(Srv { domain, service_name }));
        assert!(config.initial_cluster.is_empty(), "{:?}", config.initial_cluster);
        let config = read(&[
            "--name=a",
            "--discovery-token=t",
            "--discovery-endpoints=http://a:1, b:2",
            "--discovery-user=u",
            "--discovery-password=secret",
            "--discovery-dial-timeout=3s",
        ])
        .unwrap();
        let Discovery::Service(service) = &config.discovery else { panic!("{:?}", config.discovery) };
        assert_eq!(service.endpoints, ["http://a:1", "b:2"]);
        assert_eq!(service.user, Some(("u".to_owned(), "secret".to_owned())));
        let times = [service.dial_timeout, service.request_timeout].map(|time| time.as_secs());
        assert_eq!(times, [3, 5]);
        let pings = [service.keepalive_time, service.keepalive_timeout].map(|time| time.as_secs());
        assert_eq!(pings, [2, 6]);
        assert_eq!(config.initial_cluster_token, "t");
        assert_eq!(config.initial_cluster[0].0, "a");
        assert!(!format!("{config:?}").contains("secret"), "the password is not shown");
    }
}
