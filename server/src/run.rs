//! The process of a member, from its arguments to its exit: configuration, data directory, core, ports.
//!
//! Everything that is wrong ends in one clear line and exit status 1 (2 for a command line that cannot be read).
//! The ports are bound before log and store are made, so that a wrong address is told first.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::kv::Value;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use trilith_disk::{Disk, RealDisk};
use trilith_wal::Wal;

use crate::apply::quota::Quota;
use crate::bootstrap;
use crate::config::discovery::Discovery;
use crate::config::{self, Config, Note, Refusal, Setting};
use crate::core::{self, Core, Ended, Handle, Join, Peer};
use crate::corruption;
use crate::discovery::{self, JoinError};
use crate::outlet::carry_out;
use crate::peer::{self, Remote, Transport};
use crate::rpc::{Api, Options, Server, Stop};
use crate::tls::{Connector, Ports};
use crate::{logging, memory};

/// How long threads may take to end at the end.
const END_MAX: Duration = Duration::from_secs(1);

/// Runs the process; what it was given does not include its own name.
pub fn main(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let env: Vec<(OsString, OsString)> = env.into_iter().collect();
    if let Err(error) = set_failpoints(&env) {
        eprintln!("etcd: {error}");
        return ExitCode::from(1);
    }
    if let Some(command) = args.first().filter(|arg| *arg == "gateway" || *arg == "grpc-proxy") {
        eprintln!("etcd {}: not there yet in this version of Trilith", command.to_string_lossy());
        return ExitCode::from(1);
    }
    let config = match Config::read(args, env) {
        Ok(config) => config,
        Err(Refusal::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Usage(text)) => {
            eprint!("{text}");
            return ExitCode::from(2);
        }
        Err(Refusal::Config(error)) => {
            let plain = logging::Options {
                level: log::LevelFilter::Info,
                json: true,
                outputs: vec!["stderr".into()],
            };
            // With the plainest of outputs this fails only in a process that logs already.
            let _ = logging::init(&plain);
            log::error!(error; "failed to verify flags");
            return ExitCode::from(1);
        }
    };
    if let Err(error) = logging::init(&config.logging) {
        eprintln!("etcd: {error}");
        return ExitCode::from(1);
    }
    announce(&config);
    match serve(config) {
        Ok(()) => {
            log::info!("closed etcd server");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!(error; "etcd ends");
            ExitCode::from(1)
        }
    }
}

/// Sets the points that tests want, in builds that have them.
fn set_failpoints(env: &[(OsString, OsString)]) -> Result<(), String> {
    let of = |name: &str| env.iter().find(|(other, _)| other == name).and_then(|(_, value)| value.to_str());
    trilith_failpoint::start(of("GOFAIL_HTTP"), of("GOFAIL_FAILPOINTS"))
}

/// Logs what was read and what comes of it.
fn announce(config: &Config) {
    for note in &config.notes {
        match note {
            Note::UsedVariable { name, value } => {
                log::info!("variable-name" = name.as_str(), "variable-value" = value.as_str(); "recognized and used environment variable");
            }
            Note::UnknownVariable { name, value } => {
                let variable = format!("{name}={value}");
                log::warn!("environment-variable" = variable.as_str(); "unrecognized environment variable");
            }
            Note::Ignored { name } => log::warn!(flag = name; "this flag is ignored"),
            Note::NoEffect { name } => {
                log::warn!(flag = name; "this flag is accepted and has no effect in Trilith")
            }
        }
    }
    log::info!(
        "etcd-version" = config::ETCD_VERSION,
        "trilith-version" = env!("CARGO_PKG_VERSION"),
        "go-os" = std::env::consts::OS,
        "go-arch" = std::env::consts::ARCH,
        "max-cpu-available" = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        "starting etcd"
    );
    let settings: Vec<(&str, Value<'_>)> = config.effective.iter().map(setting).collect();
    log::logger().log(
        &log::Record::builder()
            .level(log::Level::Info)
            .target(module_path!())
            .file(Some(file!()))
            .line(Some(line!()))
            .args(format_args!("effective configuration"))
            .key_values(&settings)
            .build(),
    );
}

fn setting(setting: &Setting) -> (&str, Value<'_>) {
    let text = setting.text.as_str();
    let plain = match (text, text.parse::<i64>()) {
        _ if setting.quoted => None,
        ("true", _) => Some(Value::from(true)),
        ("false", _) => Some(Value::from(false)),
        (_, Ok(number)) => Some(Value::from(number)),
        _ => None,
    };
    (setting.name, plain.unwrap_or_else(|| Value::from(text)))
}

/// Opens everything, serves until a signal, ends in order.
fn serve(mut config: Config) -> Result<(), String> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let first_start = !Wal::exists(disk.as_ref(), &config.wal_folder());
    if first_start {
        look_up_members(&mut config)?;
        config.verify_bootstrap()?;
    } else if matches!(config.discovery, Discovery::Service(_)) {
        let dir = config.wal_folder().display().to_string();
        log::warn!("wal-dir" = dir.as_str();
            "discovery token is ignored since cluster already initialized; valid logs are found");
    }
    make_dir(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    if let Some(dir) = &config.wal_dir {
        make_dir(dir)?;
    }
    log::info!(
        name = config.name.as_str(),
        "data-dir" = config.data_dir.display().to_string().as_str(),
        "wal-dir" = config.wal_folder().display().to_string().as_str(),
        "first-start" = first_start;
        "opening the data directory"
    );
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("failed to start the runtime: {error}"))?;
    let outcome = LocalSet::new().block_on(&runtime, member(config, disk, first_start));
    // What is still looked up or read by then nobody waits for: all that had to be written is.
    runtime.shutdown_timeout(END_MAX);
    outcome
}

/// The initial cluster by DNS, where it is to come from there.
fn look_up_members(config: &mut Config) -> Result<(), String> {
    let srv = match &config.discovery {
        Discovery::Srv(srv) => srv,
        Discovery::Service(_) if config.initial_cluster_existing => {
            return Err("discovery URL should not be set when joining existing initial cluster".to_owned());
        }
        Discovery::Service(_) | Discovery::Off => return Ok(()),
    };
    let resolver = trilith_dns::Resolver::system();
    let found = discovery::cluster_of_srv(&resolver, srv, &config.name, &config.advertise_peer_urls);
    config.initial_cluster = found.map_err(|error| error.to_string())?;
    Ok(())
}

/// The initial cluster from a discovery service, where it is to come from there.
async fn join_members(config: &mut Config) -> Result<(), String> {
    let Discovery::Service(service) = &config.discovery else { return Ok(()) };
    let found = discovery::join(service, &config.name, &config.advertise_peer_urls).await;
    if let Err(error) = &found {
        let (token, refused) = (service.token.as_str(), matches!(error, JoinError::Refused(_)));
        let error = error.to_string();
        if !refused {
            log::warn!("discovery-token" = token, error = error.as_str();
                "failed to bootstrap; discovery token was already used");
            log::warn!("do not reuse discovery token; generate a new one to bootstrap a cluster");
        }
    }
    config.initial_cluster = found.map_err(|error| error.to_string())?;
    config.verify_bootstrap()
}

async fn member(mut config: Config, disk: Arc<dyn Disk>, first_start: bool) -> Result<(), String> {
    let mut signalled = std::pin::pin!(signalled()?);
    let tls = Ports::open(&config)?;
    let listeners = config.listen_client_urls.iter();
    let listeners = listeners.map(|url| (url.clone(), tls.client.clone().filter(|_| url.is_tls())));
    let server = Server::bind(listeners.collect()).map_err(|error| error.to_string())?;
    let listener = peer::Listener::bind(&config.listen_peer_urls, tls.peer.as_ref());
    let listener = listener.map_err(|error| error.to_string())?;
    let asked = tokio::select! {
        asked = ask_others(&mut config, &tls.dialer, first_start) => asked?,
        name = &mut signalled => {
            log::info!(signal = name; "received signal; shutting down");
            return Ok(());
        }
    };
    let (join, remotes) = asked.unzip();
    let core_config = core::Config { join, ..core_config(&config, Arc::clone(&disk)) };
    let snap_dir = core_config.snap_dir();
    let (core, handle) = Core::open(core_config).map_err(|error| error.to_string())?;
    let facts = handle.facts();
    log::info!(
        "member-id" = format!("{:x}", facts.member_id).as_str(),
        "cluster-id" = format!("{:x}", facts.cluster_id).as_str(),
        "applied-index" = facts.applied;
        "opened the data directory"
    );
    if !first_start && config.initial_corrupt_check {
        tokio::select! {
            checked = corruption::check_at_start(&handle, &tls.dialer) => checked?,
            name = &mut signalled => {
                log::info!(signal = name; "received signal; shutting down");
                return Ok(());
            }
        }
    }
    let options = peer::Options {
        member_id: facts.member_id,
        cluster_id: facts.cluster_id,
        advertise_urls: texts(&config.advertise_peer_urls),
        election: config.election_timeout,
        snap_dir,
        disk,
        dialer: tls.dialer.clone(),
    };
    let transport = Transport::start(options, listener, handle.clone());
    transport.add_remotes(remotes.unwrap_or_default());
    let outcome = with_peers(&config, core, handle, server, &transport, tls.dialer, signalled).await;
    transport.stop().await;
    outcome
}

/// What a first start asks of the members that it was told of; None when there is nothing to learn from them.
async fn ask_others(
    config: &mut Config,
    dialer: &Connector,
    first_start: bool,
) -> Result<Option<(Join, Vec<Remote>)>, String> {
    if first_start {
        join_members(config).await?;
    }
    match (first_start, config.initial_cluster_existing) {
        (false, _) => Ok(None),
        (true, true) => bootstrap::join(config, dialer).await.map(Some),
        (true, false) => bootstrap::check_new(config, dialer).await.map(|()| None),
    }
}

fn signalled() -> Result<impl Future<Output = &'static str>, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("failed to listen for signals: {error}"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "terminated",
            _ = interrupt.recv() => "interrupt",
        }
    })
}

fn core_outcome(outcome: Result<Result<Ended, core::Fatal>, tokio::task::JoinError>) -> Result<(), String> {
    match outcome {
        Ok(Ok(Ended::Removed)) => {
            log::error!("the member has been permanently removed from the cluster");
            Ok(())
        }
        Ok(Ok(Ended::Asked)) => Err("the core ended by itself".to_owned()),
        Ok(Err(fatal)) => Err(fatal.to_string()),
        Err(panic) => Err(format!("the core panicked: {panic}")),
    }
}

/// Runs the core, and the client port from when the member is ready, until a signal; ends both in order.
async fn with_peers(
    config: &Config,
    core: Core,
    handle: Handle,
    server: Server,
    transport: &Transport,
    dialer: Connector,
    mut signalled: impl Future<Output = &'static str> + Unpin,
) -> Result<(), String> {
    let (end_core, core_ends) = oneshot::channel::<()>();
    let outlet = {
        let (transport, handle) = (transport.clone(), handle.clone());
        move |outgoing| carry_out(&transport, &handle, outgoing)
    };
    let running = core::run(core, outlet, async {
        // A sender that is gone is a request to end as well.
        let _ = core_ends.await;
    });
    let mut core_task = tokio::task::spawn_local(running);
    tokio::task::spawn_local(corruption::watch(handle.clone(), dialer, config.checks));
    let why = tokio::select! {
        outcome = &mut core_task => return core_outcome(outcome),
        _ready = handle.ready() => None,
        name = &mut signalled => Some(name),
    };
    let (stop, stopped) = Stop::new();
    let addresses = server.addresses().map_err(|error| error.to_string())?;
    let api = Api::new(
        handle,
        Arc::new(transport.clone()),
        config.grpc_message_bytes(),
        config.watch_progress_interval,
    );
    let mut server_task = tokio::task::spawn_local(server.run(api, rpc_options(config), stopped));
    let why = match why {
        Some(name) => name,
        None => {
            for (address, secure) in addresses {
                let how = match secure {
                    true => "serving client traffic securely",
                    false => "serving client traffic insecurely; this is strongly discouraged!",
                };
                log::info!(traffic = "grpc", address = address.as_str(); "{how}");
            }
            log::info!("ready to serve client requests");
            tokio::select! {
                outcome = &mut core_task => return core_outcome(outcome),
                outcome = &mut server_task => {
                    return Err(format!("the client port ended by itself: {outcome:?}"));
                }
                name = &mut signalled => name,
            }
        }
    };
    log::info!(signal = why; "received signal; shutting down");
    stop.send_replace(true);
    let served = server_task.await.map_err(|panic| format!("the client port panicked: {panic}"))?;
    drop(end_core);
    match core_task.await {
        Ok(Ok(Ended::Asked)) => served.map_err(|error| error.to_string()),
        other => core_outcome(other),
    }
}

fn texts(urls: &[config::url::Url]) -> Vec<String> {
    urls.iter().map(ToString::to_string).collect()
}

fn core_config(config: &Config, disk: Arc<dyn Disk>) -> core::Config {
    let members = config.initial_cluster.iter();
    core::Config {
        wal_dir: config.wal_dir.clone(),
        wal_io: config.wal_io,
        compress_values: config.compress_values,
        fsync: config.fsync,
        max_wals: config.max_wals,
        name: config.name.clone(),
        client_urls: texts(&config.advertise_client_urls),
        initial_cluster: members
            .map(|(name, urls)| Peer { name: name.clone(), peer_urls: texts(urls) })
            .collect(),
        initial_cluster_token: config.initial_cluster_token.clone(),
        existing: config.initial_cluster_existing,
        force_new_cluster: config.force_new_cluster,
        snapshot_count: config.snapshot_count,
        catchup_entries: config.catchup_entries,
        heartbeat: config.heartbeat_interval,
        election: config.election_timeout,
        pre_vote: config.pre_vote,
        max_learners: config.max_learners,
        strict_reconfig_check: config.strict_reconfig_check,
        max_request_bytes: config.max_request_bytes,
        max_txn_ops: config.max_txn_ops,
        quota: Quota::new(config.quota_backend_bytes),
        retention: config.retention,
        lease_checkpoints: config.lease_checkpoints,
        lease_checkpoint_persist: config.lease_checkpoint_persist,
        memory_budget: config.memory_budget.unwrap_or_else(|| memory::default_budget() as usize),
        seed: RandomState::new().hash_one(std::process::id()),
        unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        ..core::Config::new(config.data_dir.clone(), disk)
    }
}

fn rpc_options(config: &Config) -> Options {
    let (keepalive_interval, keepalive_timeout) = config.grpc_keepalive;
    Options {
        receive_limit: config.grpc_message_bytes(),
        max_concurrent_streams: config.max_concurrent_streams,
        keepalive_interval,
        keepalive_timeout,
        io_threads: config.io_threads,
    }
}

/// Makes a folder with mode 0700, or warns when one is there that others can read.
fn make_dir(dir: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot use directory {}: {error}", dir.display());
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(failed(io::ErrorKind::NotADirectory.into())),
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let (path, mode) = (dir.display().to_string(), format!("{mode:o}"));
                log::warn!(path = path.as_str(), mode = mode.as_str(); "others than the owner may read the data directory: 700 is recommended");
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes sure that one process at a time uses the folder; the lock ends with the process.
fn lock(dir: &Path) -> Result<OwnedFd, String> {
    let open = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let fd = open.map_err(|error| format!("cannot open data directory {}: {error}", dir.display()))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(format!("data directory {} is in use by another process", dir.display()))
        }
        Err(error) => Err(format!("cannot lock data directory {}: {error}", dir.display())),
    }
}
