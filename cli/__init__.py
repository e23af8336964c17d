"""The `cumulet` command: operators, admins and tenants drive the cloud with it."""
