//! Runs hooks as they become due, one task each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::now_ms;
use crate::delivery::{Delivery, HookRun};
use crate::hook::{Outcome, input, process};

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
    let outcome = match prepare(&delivery, &run, &state).await {
        Ok(stdin) => {
            let stop = async move {
                if stopped.wait_for(|stopped| *stopped).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            process::run(&run, stdin, &state.join("logs"), stop).await
        }
        Err(why) => Outcome::NotStarted(why),
    };
    let said = tokio::task::spawn_blocking(move || delivery.hook_ended(&run, &outcome, now_ms())).await;
    assert!(said.is_ok(), "the end of a hook was written down");
}

/// The hook's standard input, as a file that has no name any more.
async fn prepare(delivery: &Arc<Delivery>, run: &HookRun, state: &Path) -> Result<std::fs::File, String> {
    let (delivery, run, path) = (Arc::clone(delivery), run.clone(), state.join(format!("hook-{}.json", run.id)));
    let prepared = tokio::task::spawn_blocking(move || {
        let (announce, digests) = delivery.manifest_of(&run)?;
        let file = input::write(&path, &run, &announce, &digests).map_err(|e| format!("{}: {e}", path.display()))?;
        std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(file)
    });
    prepared.await.unwrap_or_else(|_| Err("its manifest cannot be prepared".into()))
}
