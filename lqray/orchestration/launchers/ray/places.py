"""The places (placement groups) of worker groups whose driver died, which Ray keeps for as long as the job."""

from __future__ import annotations


def free_places_of_the_dead() -> int:
    """Remove the placement groups of this job that a dead actor made. Returns how many those were.

    Ray Train has an actor for this beside each group. It asks the State API, which a Ray without a dashboard does
    not have, and gives up where two Rays run on the machine (Ray 2.60); then whatever runs next waits for ever.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    found = 0
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        if group.creator_job_id.hex() != job or group.state == PlacementGroupTableData.REMOVED:
            continue
        maker = group.creator_actor_id.hex()
        if maker.strip("f") and state.actor_table(maker).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            found += 1
    return found
