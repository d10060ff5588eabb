//! Runs hooks as they become due, one task each.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::now_ms;
use crate::delivery::{Delivery, HookRun};
use crate::hook::input::Manifest;
use crate::hook::{Outcome, process};

/// A hook that waits for its time is looked at so often.
const LOOK: Duration = Duration::from_millis(250);

/// Runs until `stopped`, then ends what runs and waits for it. Ends by itself only if a task panicked.
pub(super) async fn run(delivery: Arc<Delivery>, state: PathBuf, due: Arc<Notify>, mut stopped: watch::Receiver<bool>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = due.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            Some(ended) = running.join_next() => if ended.is_err() { return },
        }
        let asked = Arc::clone(&delivery);
        let Ok(runs) = tokio::task::spawn_blocking(move || asked.due_hooks(now_ms())).await else { return };
        for run in runs {
            running.spawn(one(Arc::clone(&delivery), run, state.clone(), stopped.clone()));
        }
    }
    while running.join_next().await.is_some() {}
}

async fn one(delivery: Arc<Delivery>, run: HookRun, state: PathBuf, mut stopped: watch::Receiver<bool>) {
    let outcome = match prepare(&delivery, &run).await {
        Ok(manifest) => {
            let stop = async move {
                if stopped.wait_for(|stopped| *stopped).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            process::run(&run, manifest, &state.join("logs"), stop).await
        }
        Err(why) => Outcome::NotStarted(why),
    };
    let said = tokio::task::spawn_blocking(move || delivery.hook_ended(&run, &outcome, now_ms())).await;
    assert!(said.is_ok(), "the end of a hook was written down");
}

/// What the hook is told on its standard input.
async fn prepare(delivery: &Arc<Delivery>, run: &HookRun) -> Result<Manifest, String> {
    let (delivery, run) = (Arc::clone(delivery), run.clone());
    let prepared = tokio::task::spawn_blocking(move || delivery.manifest_of(&run));
    let (announce, digests) = prepared.await.unwrap_or_else(|_| Err("its manifest cannot be prepared".into()))?;
    Ok(Manifest { announce, digests })
}
