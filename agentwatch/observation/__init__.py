"""From kernel events to records: the state of what is being observed."""
