"""The fleet manager: enrols devices, publishes bundles, rolls them out in phases and takes them back.

config, keys       the state folder and what lies in it
schema, db, audit  the database
auth, enroll       who may do what; tokens become device certificates
devices, releases  what the fleet knows; assignments
broker, worker     mosquitto as a child, and the client that talks to devices through it
rollout            state machines, gates and the engine
api, web           HTTP for programs and for people
server, up, main   listeners, the whole process, the command line
"""
