//! The cluster that other programs embed in their own tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use milonga::DevCluster;
use milonga_client::ClusterConfig;

#[tokio::test]
async fn an_embedded_cluster_takes_appends_and_survives_crashes_of_its_servers() {
    let mut cluster = DevCluster::start().await.unwrap();
    let log = cluster.log().clone();
    let first = log.append("first", &[]).await.unwrap();
    assert_eq!(first.0, 0);

    for name in cluster.servers() {
        cluster.restart(&name).await.unwrap();
    }
    let position = log.append("second", &[]).await.unwrap();
    assert!(position > first);
    assert_eq!(log.read(first).await.unwrap().payload().unwrap(), "first");

    let other = ClusterConfig::load(&cluster.config_path())
        .unwrap()
        .connect()
        .unwrap();
    assert_eq!(
        other.read(position).await.unwrap().payload().unwrap(),
        "second"
    );
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_embedded_cluster_carries_on_in_a_directory_that_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cluster");
    let cluster = DevCluster::builder()
        .dir(&dir)
        .replicas(1)
        .start()
        .await
        .unwrap();
    let position = cluster.log().append("kept", &[]).await.unwrap();
    drop(cluster);

    let cluster = DevCluster::builder()
        .dir(&dir)
        .replicas(1)
        .start()
        .await
        .unwrap();
    let entry = cluster.log().read(position).await.unwrap();
    assert_eq!(entry.payload().unwrap(), "kept");
}
