"""HTTP for programs: the admin listener (`app.admin_app`) and the device listener (`devices_only`)."""
