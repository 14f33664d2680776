//! The form for several members: kills, freezes, slows down and cuts off members, and fills their disks, at random while
//! clients write and read.
//!
//! After each round everybody is back, and must hold every acknowledged write at its revision, and the same hash. While
//! it is under way no linearizable read may show less than what was acknowledged before it began.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use trilith_benches::client::{Client, path};
use trilith_benches::cluster::Cluster;
use trilith_benches::rng::Rng;
use trilith_benches::{Result, block_on};
use trilith_proto::etcdserverpb::{HashKvRequest, HashKvResponse, RangeRequest, RangeResponse};

use crate::cluster_load::{History, KEY_PREFIX, Load, key};

/// How long the members may take to agree again when everything is mended.
const RECOVERY: Duration = Duration::from_secs(60);
/// Keys that a check reads at a time.
const PAGE: i64 = 5_000;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    KillOne,
    KillLeader,
    KillMost,
    KillAll,
    KillTwice,
    Freeze,
    FreezeLeader,
    CutOff,
    CutOffLeader,
    Slow,
    SlowLeader,
    /// Only where each member has a file system of its own.
    FillDisk,
}

const TROUBLES: [Trouble; 12] = [
    Trouble::KillOne,
    Trouble::KillLeader,
    Trouble::KillMost,
    Trouble::KillAll,
    Trouble::KillTwice,
    Trouble::Freeze,
    Trouble::FreezeLeader,
    Trouble::CutOff,
    Trouble::CutOffLeader,
    Trouble::Slow,
    Trouble::SlowLeader,
    Trouble::FillDisk,
];
/// The longest delay of a slow network: more than an election timeout.
const DELAY_MAX_MS: u64 = 1500;
/// What takes the room on a disk that is to be full.
const FILLER: &str = "filler";

/// What a run is made from.
#[derive(Debug)]
pub(crate) struct Plan<'p> {
    pub(crate) server: &'p Path,
    pub(crate) folder: &'p Path,
    pub(crate) members: usize,
    pub(crate) rounds: usize,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
    /// Below `folder` each member has a file system of its own, which may be filled.
    pub(crate) may_fill: bool,
    /// Restart everybody in order instead; no request of a client that retries may fail.
    pub(crate) rolling: bool,
}

pub(crate) fn run(plan: &Plan<'_>) -> Result<()> {
    block_on(async {
        let mut cluster = Cluster::new(plan.server, plan.folder, plan.members, &[], !plan.rolling).await?;
        cluster.ready().await?;
        let addresses = cluster.launches.iter().map(|launch| launch.client).collect();
        let load = Load::start(addresses, plan.clients, plan.seed, plan.rolling);
        let began = Instant::now();
        let mut rng = Rng::new(plan.seed);
        let mut checked = 0;
        for round in 1..=plan.rounds {
            let outcome = match plan.rolling {
                true => restart_in_turn(&mut cluster, &load.history).await,
                false => trouble(&mut cluster, &mut rng, plan).await,
            };
            let outcome = match outcome {
                Ok(what) => {
                    check(&mut cluster, &load.history, &mut checked).await.map_err(|e| format!("{what}: {e}"))
                }
                Err(error) => Err(error.to_string()),
            };
            outcome.map_err(|error| format!("round {round}: {error}"))?;
            if round % 10 == 0 || round == plan.rounds {
                let (acknowledged, reads) = (load.history.acknowledged(), load.history.reads());
                println!("  round {round}: {acknowledged} acknowledged writes, {reads} reads");
            }
        }
        load.stop().await?;
        check(&mut cluster, &load.history, &mut 0).await?;
        println!(
            "killtest: {} members, {} rounds, {}; seed {}; {:.1} s",
            plan.members,
            plan.rounds,
            load.history,
            plan.seed,
            began.elapsed().as_secs_f64()
        );
        Ok(())
    })
}

/// Does one thing to the cluster and takes it back; what it was.
async fn trouble(cluster: &mut Cluster, rng: &mut Rng, plan: &Plan<'_>) -> Result<String> {
    let possible = if plan.may_fill { &TROUBLES[..] } else { &TROUBLES[..TROUBLES.len() - 1] };
    let what = *rng.pick(possible);
    let count = cluster.members.len() as u64;
    let leader = cluster.leader().await?;
    let random = rng.below(count) as usize;
    let pause = |rng: &mut Rng, most| Duration::from_millis(rng.below(most));
    sleep(pause(rng, 500)).await;
    match what {
        Trouble::KillOne => {
            cluster.kill(random)?;
            sleep(pause(rng, 2000)).await;
        }
        Trouble::KillLeader => {
            cluster.kill(leader)?;
            sleep(pause(rng, 3000)).await;
        }
        Trouble::KillMost => {
            cluster.kill(random)?;
            cluster.kill((random + 1) % count as usize)?;
            sleep(pause(rng, 1500)).await;
        }
        Trouble::KillAll => {
            for at in 0..count as usize {
                cluster.kill(at)?;
            }
        }
        Trouble::KillTwice => {
            cluster.kill(random)?;
            cluster.start(random)?;
            sleep(pause(rng, 400)).await;
            cluster.kill(random)?;
        }
        Trouble::Freeze | Trouble::FreezeLeader => {
            let at = if matches!(what, Trouble::Freeze) { random } else { leader };
            cluster.freeze(at)?;
            sleep(pause(rng, 4000)).await;
            cluster.thaw(at)?;
        }
        Trouble::CutOff | Trouble::CutOffLeader => {
            let at = if matches!(what, Trouble::CutOff) { random } else { leader };
            cluster.isolate(at);
            sleep(pause(rng, 5000)).await;
            cluster.links.mend();
        }
        Trouble::Slow | Trouble::SlowLeader => {
            let at = if matches!(what, Trouble::Slow) { random } else { leader };
            cluster.slow_down(at, pause(rng, DELAY_MAX_MS));
            sleep(pause(rng, 5000)).await;
            cluster.links.mend();
        }
        Trouble::FillDisk => {
            let filler = cluster.launches[random].folder.join(FILLER);
            fill(&filler)?;
            sleep(pause(rng, 4000)).await;
            std::fs::remove_file(&filler)?;
        }
    }
    Ok(format!("{what:?} of m{random}, m{leader} leading"))
}

/// Writes zeros until there is no room.
fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let chunk = vec![0; 1 << 20];
    loop {
        match file.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(format!("{}: {error}", path.display()).into()),
        }
    }
}

/// Everybody ends in order and comes back, one after the other, while writes go on.
async fn restart_in_turn(cluster: &mut Cluster, history: &History) -> Result<String> {
    for at in 0..cluster.members.len() {
        cluster.stop(at).await?;
        let before = history.acknowledged();
        let waited = Instant::now();
        while history.acknowledged() < before + 20 {
            if waited.elapsed() > RECOVERY {
                return Err(format!("no writes while m{at} is away").into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        cluster.ready().await?;
    }
    Ok("a rolling restart".to_owned())
}

/// Brings everybody back and compares: all acknowledged writes from `checked` on are there, and all hashes are equal.
async fn check(cluster: &mut Cluster, history: &History, checked: &mut usize) -> Result<()> {
    timeout(RECOVERY, cluster.ready()).await.map_err(|_| "not everybody came back")??;
    history.violation()?;
    let written = history.written();
    // As of now: what is acknowledged while a member is read need not be in what it has shown.
    let expected: Vec<_> =
        (*checked..written).filter_map(|number| Some((number, history.revision_of(number)?))).collect();
    let mut hashes = Vec::new();
    let mut revision = 0;
    for at in 0..cluster.members.len() {
        let mut client = Client::connect(cluster.launches[at].client).await?;
        let now = timeout(RECOVERY, present(&mut client))
            .await
            .map_err(|_| format!("m{at} does not catch up"))??;
        if at == 0 {
            revision = now;
        }
        find_all(&mut client, &expected, *checked..written).await.map_err(|e| format!("m{at}: {e}"))?;
        let answer: HashKvResponse = client.call(path::HASH_KV, &HashKvRequest { revision }).await?;
        hashes.push((answer.hash, answer.compact_revision));
    }
    *checked = written;
    if hashes.windows(2).any(|two| two[0] != two[1]) {
        return Err(format!("hashes at revision {revision} differ: {hashes:x?}").into());
    }
    history.violation()
}

/// The revision of a linearizable read. A leader may change meanwhile: then it is asked again.
async fn present(client: &mut Client) -> Result<i64> {
    loop {
        let request = RangeRequest { key: "probe".into(), ..RangeRequest::default() };
        if let Ok(answer) = client.call::<_, RangeResponse>(path::RANGE, &request).await {
            return Ok(answer.header.unwrap_or_default().revision);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether this member's own state holds each of these writes, by number and revision, and its value.
async fn find_all(
    client: &mut Client,
    expected: &[(usize, i64)],
    writes: std::ops::Range<usize>,
) -> Result<()> {
    let mut found = std::collections::HashMap::new();
    let mut from = key(writes.start);
    loop {
        let request = RangeRequest {
            key: from,
            range_end: key(writes.end),
            limit: PAGE,
            serializable: true,
            ..RangeRequest::default()
        };
        let answer: RangeResponse = client.call(path::RANGE, &request).await?;
        for kv in &answer.kvs {
            found.insert(kv.key.clone(), kv.mod_revision);
            if kv.value != kv.key {
                return Err(format!("{:?} has the value {:?}", kv.key, kv.value).into());
            }
        }
        match answer.kvs.last() {
            Some(last) if answer.more => from = [&last.key[..], b"\0"].concat().into(),
            _ => break,
        }
    }
    for &(number, revision) in expected {
        match found.get(&key(number)) {
            None => {
                return Err(
                    format!("{KEY_PREFIX}{number}, acknowledged at revision {revision}, is lost").into()
                );
            }
            // One that was sent again after its answer was lost may have been done twice.
            Some(at) if *at < revision => {
                return Err(format!(
                    "{KEY_PREFIX}{number} is of revision {at}, and was acknowledged at {revision}"
                )
                .into());
            }
            Some(_) => {}
        }
    }
    Ok(())
}
