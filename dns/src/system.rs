//! The system's configuration: `/etc/resolv.conf` and `/etc/hosts`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::Resolver;

const PORT: u16 = 53;

pub(crate) fn resolver() -> Resolver {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Resolver { hosts: hosts(&read("/etc/hosts")), ..of_conf(&read("/etc/resolv.conf")) }
}

/// The servers, the search list and the options that are known here; what cannot be read is passed over.
fn of_conf(text: &str) -> Resolver {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    let mut resolver = Resolver::of_servers(vec![(Ipv4Addr::LOCALHOST, PORT).into()]);
    for line in text.lines().map(|line| line.split(['#', ';']).next().unwrap_or_default()) {
        let mut words = line.split_whitespace();
        match words.next() {
            // The scope of a link-local address is left out by Rust's parser of addresses alone.
            Some("nameserver") => {
                let scoped = words.next().and_then(|text| {
                    let plain = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT));
                    plain.or_else(|_| format!("[{text}]:{PORT}").parse()).ok()
                });
                servers.extend(scoped);
            }
            Some("search" | "domain") => {
                search = words.map(|suffix| suffix.trim_matches('.').to_owned()).collect();
            }
            Some("options") => words.for_each(|option| set(&mut resolver, option)),
            _ => {}
        }
    }
    servers.truncate(3);
    if !servers.is_empty() {
        resolver.servers = servers;
    }
    search.retain(|suffix| !suffix.is_empty());
    Resolver { search, ..resolver }
}

fn set(resolver: &mut Resolver, option: &str) {
    let Some((name, Ok(number))) = option.split_once(':').map(|(name, n)| (name, n.parse::<u32>())) else {
        return;
    };
    match name {
        "ndots" => resolver.ndots = number.min(15) as usize,
        "timeout" => resolver.timeout = Duration::from_secs(u64::from(number.clamp(1, 30))),
        "attempts" => resolver.attempts = number.clamp(1, 5) as usize,
        _ => {}
    }
}

fn hosts(text: &str) -> Vec<(String, IpAddr)> {
    let mut found = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default()) {
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        found.extend(words.map(|name| (name.trim_end_matches('.').to_ascii_lowercase(), address)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system() {
        let resolver = of_conf(
            "# comment\nnameserver 10.0.0.1\nnameserver ::1 ; two\nnameserver nonsense\nsearch a.example b.example.\n\
             options ndots:2 timeout:1 attempts:9 rotate\n",
        );
        assert_eq!(resolver.servers, ["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!((resolver.ndots, resolver.timeout, resolver.attempts), (2, Duration::from_secs(1), 5));
        assert_eq!(resolver.candidates("x.y"), ["x.y.a.example", "x.y.b.example", "x.y"]);
        assert_eq!(resolver.candidates("x.y.z"), ["x.y.z", "x.y.z.a.example", "x.y.z.b.example"]);
        assert_eq!(resolver.candidates("x."), ["x."]);
        assert_eq!(of_conf("").servers, ["127.0.0.1:53".parse().unwrap()]);
        let resolver =
            Resolver { hosts: hosts("::1 localhost\n127.0.0.1\tlocalhost  Me # x\nbad me\n"), ..of_conf("") };
        assert_eq!(
            resolver.addresses("LOCALHOST.").unwrap(),
            ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(resolver.addresses("me").unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
