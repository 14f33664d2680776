//! What compression of values costs and saves, on objects like those that Kubernetes keeps: bytes on disk, CPU of the
//! checkpoints, of the writer and of a full list, with and without.
//!
//! `cargo run --release -p trilith-engine --example values_bench -- [OBJECTS]` (20,000 by default).

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use trilith_disk::RealDisk;
use trilith_engine::{KeyRange, Options, Store};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 24] = [
            "frontend",
            "backend",
            "payments",
            "nginx",
            "worker",
            "cache",
            "metrics",
            "gateway",
            "default",
            "prod",
            "kube-system",
            "batch",
            "ingest",
            "scheduler",
            "redis",
            "postgres",
            "auth",
            "search",
            "mail",
            "orders",
            "stage",
            "agent",
            "proxy",
            "config",
        ];
        WORDS[self.below(24) as usize]
    }

    fn hash(&mut self) -> String {
        format!("{:08x}{:08x}", self.next() as u32, self.next() as u32)
    }
}

/// The fields of one object: paths with their values, as many as fill `bytes`.
fn fields(rng: &mut Rng, bytes: usize) -> Vec<(String, String)> {
    let (app, hash) = (rng.word(), rng.hash());
    let uid = format!("{}-{}-{}", rng.hash(), rng.below(9999), rng.hash());
    let mut fields = vec![
        ("kind".into(), "Pod".into()),
        ("apiVersion".into(), "v1".into()),
        ("metadata.name".into(), format!("{app}-{hash}")),
        ("metadata.namespace".into(), rng.word().into()),
        ("metadata.uid".into(), uid),
        (
            "metadata.creationTimestamp".into(),
            format!("2026-01-{:02}T{:02}:11:52Z", rng.below(28) + 1, rng.below(24)),
        ),
        ("metadata.labels.app".into(), app.into()),
        ("metadata.labels.pod-template-hash".into(), rng.hash()),
    ];
    let mut size = 400;
    for container in 0.. {
        if size >= bytes {
            break;
        }
        let name = format!("spec.containers.{container}");
        let before = fields.len();
        fields.push((format!("{name}.name"), rng.word().into()));
        fields.push((
            format!("{name}.image"),
            format!("registry.example.com/{}/{}@sha256:{}{}", rng.word(), rng.word(), rng.hash(), rng.hash()),
        ));
        fields.push((format!("{name}.imagePullPolicy"), "IfNotPresent".into()));
        fields.push((format!("{name}.terminationMessagePath"), "/dev/termination-log".into()));
        fields.push((format!("{name}.resources.limits.memory"), format!("{}Mi", 64 << rng.below(6))));
        fields.push((format!("{name}.resources.requests.cpu"), format!("{}m", 50 * rng.below(40))));
        for n in 0..rng.below(8) {
            let value = if rng.below(3) == 0 {
                rng.hash()
            } else {
                format!("http://{}.{}.svc.cluster.local:8080", rng.word(), rng.word())
            };
            fields.push((format!("{name}.env.{n}.{}", rng.word().to_uppercase()), value));
        }
        fields.push((
            format!("{name}.volumeMounts.0.mountPath"),
            "/var/run/secrets/kubernetes.io/serviceaccount".into(),
        ));
        fields.push((
            format!("status.containerStatuses.{container}.containerID"),
            format!("containerd://{}{}", rng.hash(), rng.hash()),
        ));
        fields.push((
            format!("status.containerStatuses.{container}.startedAt"),
            format!("2026-02-{:02}T10:{:02}:07Z", rng.below(28) + 1, rng.below(60)),
        ));
        size += fields[before..].iter().map(|(path, value)| path.len() + value.len() + 6).sum::<usize>();
    }
    fields
}

fn json(fields: &[(String, String)]) -> Vec<u8> {
    let mut text = String::from("{");
    for (path, value) in fields {
        let _ = write!(text, "\"{path}\":\"{value}\",");
    }
    text.pop();
    text.push('}');
    text.into_bytes()
}

/// As protobuf would have it: tags and lengths in place of names, and the managed fields' paths as JSON, which is how
/// Kubernetes keeps those.
fn protobuf(fields: &[(String, String)]) -> Vec<u8> {
    let mut bytes = b"k8s\0\n\x0b\n\x02v1\x12\x03Pod\x12".to_vec();
    for (n, (_, value)) in fields.iter().enumerate() {
        bytes.push((n % 30 * 8 + 2) as u8);
        bytes.push(value.len() as u8);
        bytes.extend_from_slice(value.as_bytes());
    }
    for (path, _) in fields.iter().take(fields.len() / 3) {
        for name in path.split('.') {
            bytes.extend_from_slice(b"\"f:");
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b"\":{}");
        }
    }
    bytes
}

/// CPU time of this thread.
fn cpu() -> Outcome<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().ok_or("no field")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("trilith-values-bench-{}", std::process::id()))
}

fn open(compress: bool) -> Outcome<Store> {
    let options = Options {
        path: folder().join("db"),
        disk: Arc::new(RealDisk),
        map: true,
        dirty_bytes_max: 64 << 20,
        compress,
    };
    Ok(Store::open(options)?)
}

fn checkpoint(store: &mut Store, spent: &mut Duration) -> Outcome<()> {
    store.publish();
    if let Some(job) = store.begin_checkpoint() {
        let before = cpu()?;
        let done = job.run()?;
        *spent += cpu()? - before;
        store.finish_checkpoint(done)?;
    }
    Ok(())
}

/// Reads every pair as a list does; bytes.
fn list(store: &Store) -> Outcome<(usize, Duration)> {
    let began = cpu()?;
    let root = store.reader().root();
    let (mut bytes, mut copy) = (0, Vec::new());
    for key in root.view().keys(KeyRange { start: b"", end: Some(b"") }, 0)? {
        let pair = root.view().kv(key?.modified)?;
        copy.clear();
        copy.extend_from_slice(&pair);
        bytes += copy.len();
    }
    Ok((bytes, cpu()? - began))
}

fn run(name: &str, objects: &[Vec<u8>], compress: bool) -> Outcome<()> {
    let _ = std::fs::remove_dir_all(folder());
    std::fs::create_dir_all(folder())?;
    let mut store = open(compress)?;
    let (mut applying, mut writing) = (Duration::ZERO, Duration::ZERO);
    for (n, object) in objects.iter().enumerate() {
        let began = cpu()?;
        let mut txn = store.txn();
        txn.put(format!("/registry/pods/{:05}/{n:08}", n * 7919 % 100_003).as_bytes(), object, 0)?;
        drop(txn);
        applying += cpu()? - began;
        if n % 50 == 0 {
            store.publish();
        }
        if store.checkpoint_due() {
            checkpoint(&mut store, &mut writing)?;
        }
    }
    checkpoint(&mut store, &mut writing)?;
    checkpoint(&mut store, &mut writing)?;
    let size = store.size_in_use_bytes();
    drop(store);
    let store = open(compress)?;
    let mut lists = Vec::new();
    for _ in 0..5 {
        lists.push(list(&store)?);
    }
    lists.sort_by_key(|(_, time)| *time);
    let (bytes, time) = lists[2];
    let mb = bytes as f64 / 1e6;
    println!(
        "{name:<9} {:<11} {:>7.1} MB of pairs {:>7.1} MB on disk  checkpoint {:>6.2} ms CPU/MB  apply {:>6.2} us/put  list {:>6.2} ms CPU/MB",
        if compress { "compressed" } else { "plain" },
        mb,
        size as f64 / 1e6,
        writing.as_secs_f64() * 1e3 / mb,
        applying.as_secs_f64() * 1e6 / objects.len() as f64,
        time.as_secs_f64() * 1e3 / mb,
    );
    std::fs::remove_dir_all(folder())?;
    Ok(())
}

fn main() -> Outcome<()> {
    let count = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let mut rng = Rng(1);
    let sized: Vec<_> = (0..count)
        .map(|_| {
            let bytes = 1024 + rng.below(19 << 10) * rng.below(1024) / 1024;
            fields(&mut rng, bytes as usize)
        })
        .collect();
    for (name, encode) in [("json", json as fn(&[(String, String)]) -> Vec<u8>), ("protobuf", protobuf)] {
        let objects: Vec<_> = sized.iter().map(|fields| encode(fields)).collect();
        for _ in 0..2 {
            run(name, &objects, false)?;
            run(name, &objects, true)?;
        }
    }
    Ok(())
}
