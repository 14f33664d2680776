//! The connection to a cluster: the first endpoint that answers, within a deadline, and etcd's words for what failed.
//!
//! A [`Client`] belongs to one connection. A request is sent once: a write that may have reached the server is never
//! sent again.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use trilith_dns::Resolver;

use crate::exit::Failure;
use crate::flags::Flags;
use crate::reach::{Target, Tls};
use crate::srv;
use crate::terminal::warn;

mod stubs {
    //! The generated client stubs.
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("etcdserverpb");
}

use stubs::cluster_client::ClusterClient;
use stubs::kv_client::KvClient;
use stubs::lease_client::LeaseClient;
use stubs::maintenance_client::MaintenanceClient;
use stubs::watch_client::WatchClient;

/// What every request says that ran out of time.
pub(crate) const DEADLINE_EXCEEDED: &str = "context deadline exceeded";

/// gRPC clients never ping more often than this, whatever they are told; servers close connections of those that do.
const MIN_PING_INTERVAL: Duration = Duration::from_secs(10);
/// What log lines name as their origin.
const CALLER: &str = "client/client.rs";
/// How long to wait before the endpoints are tried once more.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Requests larger than this are refused before they are sent, unless a flag says otherwise.
const DEFAULT_MAX_REQUEST: usize = 2 << 20;
/// etcd's texts that its client leaves inside the rendered gRPC status.
const NOT_IN_CLIENT_MAP: [&str; 7] = [
    "etcdserver: request canceled",
    "etcdserver: context deadline exceeded",
    "etcdserver: invalid client api version",
    "etcdserver: permission not given",
    "etcdserver: request timed out, waiting for the applied index took too long",
    "etcdserver: request timed out, leader transfer took too long",
    "etcdserver: unknown method",
];

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: Tls,
    pub(crate) dial_timeout: Duration,
    /// From the start of a command to the end of its request, connecting included.
    pub(crate) command_timeout: Duration,
    pub(crate) keepalive_time: Duration,
    pub(crate) keepalive_timeout: Duration,
    /// Bytes; 0 for the default.
    pub(crate) max_request: usize,
    /// Bytes; 0 for the default.
    pub(crate) max_answer: usize,
}

impl Config {
    /// The connection's flags of `etcdctl`.
    ///
    /// # Errors
    /// Code 128: a flag asks for authentication, which is not there yet, or a file cannot be used. Code 1: the domain of
    /// `--discovery-srv` has no records.
    pub(crate) fn from_flags(flags: &Flags) -> Result<Config, Failure> {
        for name in ["cert", "key", "cacert"] {
            if flags.changed(name) && flags.text(name).is_empty() {
                return Err(Failure::bad_args(format_args!("empty string is passed to --{name} option")));
            }
        }
        let mut texts = ["user", "password", "auth-jwt-token"].into_iter();
        if let Some(name) = texts.find(|name| !flags.text(name).is_empty()) {
            return Err(Failure::bad_args(format_args!("--{name}: authentication is not supported yet")));
        }
        let config = Config {
            endpoints: endpoints(flags)?,
            tls: Tls::from_flags(flags)?,
            dial_timeout: flags.duration("dial-timeout"),
            command_timeout: flags.duration("command-timeout"),
            keepalive_time: flags.duration("keepalive-time"),
            keepalive_timeout: flags.duration("keepalive-timeout"),
            max_request: flags.size("max-request-bytes"),
            max_answer: flags.size("max-recv-bytes"),
        };
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// Code 128: there is no endpoint, or one that cannot be used.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.endpoints.is_empty() {
            return Err(Failure::bad_args("no endpoints given"));
        }
        self.endpoints.iter().try_for_each(|endpoint| self.target(endpoint).map(drop))
    }

    /// The same settings for one endpoint alone.
    pub(crate) fn only(&self, endpoint: &str) -> Config {
        Config { endpoints: vec![endpoint.to_owned()], ..self.clone() }
    }

    fn target(&self, endpoint: &str) -> Result<Target, Failure> {
        self.tls.target(endpoint, |target| {
            target
                .tcp_nodelay(true)
                .http2_keep_alive_interval(self.keepalive_time.max(MIN_PING_INTERVAL))
                .keep_alive_timeout(self.keepalive_timeout)
        })
    }

    /// The deadline of a command that starts now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.command_timeout
    }

    /// Connects to the first endpoint that can be reached, trying all of them again and again until `deadline`.
    ///
    /// # Errors
    /// Code 1, [`DEADLINE_EXCEEDED`]; code 128 for an endpoint that cannot be used.
    pub(crate) async fn connect(&self, deadline: Instant) -> Result<Client, Failure> {
        let mut targets = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            targets.push(self.target(endpoint)?);
        }
        let mut reason = DEADLINE_EXCEEDED.to_owned();
        let mut at = "";
        loop {
            for (target, endpoint) in targets.iter().zip(&self.endpoints) {
                let until = deadline.min(Instant::now() + self.dial_timeout);
                match tokio::time::timeout_at(until, target.connect()).await {
                    Ok(Ok(channel)) => return Ok(self.client(channel, deadline)),
                    Ok(Err(error)) => (reason, at) = (error, endpoint),
                    Err(_) => {}
                }
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                tokio::time::sleep_until(deadline).await;
                warn(CALLER, "no endpoint could be reached", |line| {
                    line.text("endpoint", at);
                    line.text("error", &reason);
                });
                return Err(Failure::error(DEADLINE_EXCEEDED));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn client(&self, channel: Channel, deadline: Instant) -> Client {
        let or = |size: usize, default: usize| if size == 0 { default } else { size };
        Client {
            channel,
            deadline,
            max_request: or(self.max_request, DEFAULT_MAX_REQUEST),
            max_answer: or(self.max_answer, i32::MAX as usize),
        }
    }
}

/// Those of the domain of `--discovery-srv`; without any, those of `--endpoints`.
fn endpoints(flags: &Flags) -> Result<Vec<String>, Failure> {
    let found = match flags.text("discovery-srv") {
        "" => Vec::new(),
        domain => {
            let (name, insecure) = (flags.text("discovery-srv-name"), flags.bool("insecure-discovery"));
            srv::endpoints(&Resolver::system(), domain, name, insecure)?
        }
    };
    if found.is_empty() { Ok(flags.list("endpoints").to_vec()) } else { Ok(found) }
}

/// A connection, and the deadline of the command that opened it.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    deadline: Instant,
    max_request: usize,
    max_answer: usize,
}

/// A typed client of one of etcd's services.
macro_rules! service {
    ($name:ident, $client:ident) => {
        pub(crate) fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(self.max_answer)
        }
    };
}

impl Client {
    service!(kv, KvClient);
    service!(lease, LeaseClient);
    service!(watch, WatchClient);
    service!(cluster, ClusterClient);
    service!(maintenance, MaintenanceClient);

    /// Refuses a request that is larger than `--max-request-bytes`, in the words of Go's gRPC.
    ///
    /// # Errors
    /// Code 1.
    pub(crate) fn check_size(&self, request: &impl prost::Message) -> Result<(), Failure> {
        let (size, max) = (request.encoded_len(), self.max_request);
        if size > max {
            let text = format!("trying to send message larger than max ({size} vs. {max})");
            return Err(Failure::error(status_text(&Status::resource_exhausted(text))));
        }
        Ok(())
    }

    /// Waits for an answer until the command's deadline.
    ///
    /// # Errors
    /// The text that etcd's tools show for the failure.
    pub(crate) async fn call<T>(
        &self,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, String> {
        match tokio::time::timeout_at(self.deadline, request).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status_text(&status)),
            Err(_) => Err(DEADLINE_EXCEEDED.to_owned()),
        }
    }
}

/// A status as etcd's client renders it: its own errors by their text, all others as `rpc error: code = ... desc = ...`.
pub(crate) fn status_text(status: &Status) -> String {
    let message = status.message();
    if message.starts_with("etcdserver: ") && !NOT_IN_CLIENT_MAP.contains(&message) {
        return message.to_owned();
    }
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::GLOBAL_FLAGS;

    fn flags(args: &[&str]) -> Flags {
        let mut flags = Flags::new(&[GLOBAL_FLAGS]);
        let args: Vec<_> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        flags.parse(&args).unwrap();
        flags
    }

    #[test]
    fn endpoints_come_with_and_without_a_scheme() {
        let config =
            Config::from_flags(&flags(&["--endpoints=127.0.0.1:1,http://localhost:2,[::1]:3"])).unwrap();
        let shown = |config: &Config| -> Vec<_> {
            config.endpoints.iter().map(|endpoint| config.target(endpoint).unwrap().shown()).collect()
        };
        assert_eq!(shown(&config), ["http://127.0.0.1:1/", "http://localhost:2/", "http://[::1]:3/"]);
        let endpoints = "--endpoints=a:1,http://b:2,https://[::1]:3,unix:///tmp/c,unix:d,unixs://e:1";
        let config = Config::from_flags(&flags(&[endpoints])).unwrap();
        let unix = ["http://localhost//tmp/c", "http://localhost/d", "https://localhost/e:1"];
        assert_eq!(shown(&config)[..3], ["http://a:1/", "http://b:2/", "https://[::1]:3/"]);
        assert_eq!(shown(&config)[3..], unix);
        for flag in ["--insecure-transport=false", "--insecure-skip-tls-verify"] {
            let config = Config::from_flags(&flags(&[endpoints, flag])).unwrap();
            let unix = ["https://localhost//tmp/c", "https://localhost/d", "https://localhost/e:1"];
            assert_eq!(shown(&config)[..3], ["https://a:1/", "http://b:2/", "https://[::1]:3/"]);
            assert_eq!(shown(&config)[3..], unix);
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (args, part) in [
            (&["--cert=a"][..], "KeyFile and CertFile must both be present[key: , cert: a]"),
            (&["--cacert=/nothing/here"], "open /nothing/here: "),
            (&["--user", "root:pw"], "--user:"),
            (&["--key="], "empty string is passed to --key option"),
            (&["--endpoints=ftp://a"], "ftp"),
            (&["--endpoints=unixs://"], "\"unixs://\""),
            (&["--endpoints=a b"], "\"a b\""),
            (&["--endpoints="], "no endpoints"),
        ] {
            let failure = Config::from_flags(&flags(args)).unwrap_err();
            assert!(failure.code == 128 && failure.text.contains(part), "{args:?}: {failure:?}");
        }
        assert!(
            Config::from_flags(&flags(&["--insecure-transport=true", "--insecure-skip-tls-verify=false"]))
                .is_ok()
        );
    }

    #[test]
    fn errors_of_the_server_are_shown_by_their_text() {
        for (status, text) in [
            (
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                Status::unavailable(
                    "etcdserver: request timed out, waiting for the applied index took too long",
                ),
                "rpc error: code = Unavailable desc = etcdserver: request timed out, waiting for the applied index took too long",
            ),
            (Status::unknown("raft: stopped"), "rpc error: code = Unknown desc = raft: stopped"),
            (Status::cancelled("x"), "rpc error: code = Canceled desc = x"),
        ] {
            assert_eq!(status_text(&status), text);
        }
    }
}
