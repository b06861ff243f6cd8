# Libraries that run on glibc 2.28, linked on any later one. Version 2.34 moved the functions below into libc.so.6 under a
# new symbol version, so a library linked there asks for 2.34, though nothing about them is new. These are empty libraries
# with the names and versions that glibc had before, and still answers to; they are linked with and never installed.
#
#   hspan_link_with_older_glibc(TARGET)
set(HSPAN_GLIBC_DL dlclose dlerror dlopen dlsym dlvsym)
set(HSPAN_GLIBC_PTHREAD
  pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
  pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
  pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
  pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
  pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy pthread_rwlockattr_init
  pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init pthread_spin_lock
  pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait sem_wait)
set(HSPAN_GLIBC_RT shm_open shm_unlink)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  set(HSPAN_GLIBC_BASE GLIBC_2.2.5)
  set(HSPAN_GLIBC_MORE_DL "GLIBC_2.3.4 { dlmopen; } GLIBC_2.2.5;")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(HSPAN_GLIBC_BASE GLIBC_2.17)
  list(APPEND HSPAN_GLIBC_DL dlmopen)
endif()

# name, soname, functions of the base version, more of the version script
function(_hspan_add_glibc_library name soname functions more)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/older_glibc)
  list(JOIN functions "; " listed)
  string(REGEX MATCHALL "[{] [a-z_]+" others "${more}")
  string(REPLACE "{ " "" others "${others}")
  set(code "// Nothing here is ever executed.\n")
  foreach(function IN LISTS functions others)
    string(APPEND code "extern \"C\" void ${function}() {}\n")
  endforeach()
  file(CONFIGURE OUTPUT ${folder}/${name}.cpp CONTENT "${code}" @ONLY)
  file(CONFIGURE OUTPUT ${folder}/${name}.map CONTENT "${HSPAN_GLIBC_BASE} { ${listed}; };\n${more}\n" @ONLY)
  add_library(${name} SHARED ${folder}/${name}.cpp)
  set_target_properties(${name} PROPERTIES NO_SONAME ON LIBRARY_OUTPUT_DIRECTORY ${folder})
  target_link_options(${name} PRIVATE
    -nostdlib LINKER:-soname,${soname} LINKER:--version-script=${folder}/${name}.map)
endfunction()

function(hspan_link_with_older_glibc target)
  if(NOT HSPAN_GLIBC_BASE)
    return()
  endif()
  if(NOT TARGET hspan_glibc_dl)
    _hspan_add_glibc_library(hspan_glibc_dl libdl.so.2 "${HSPAN_GLIBC_DL}" "${HSPAN_GLIBC_MORE_DL}")
    _hspan_add_glibc_library(hspan_glibc_pthread libpthread.so.0 "${HSPAN_GLIBC_PTHREAD}" "")
    _hspan_add_glibc_library(hspan_glibc_rt librt.so.1 "${HSPAN_GLIBC_RT}" "")
  endif()
  # CUDA's runtime comes later in the line: without --no-as-needed they would be dropped before anything needs them.
  target_link_options(${target} PRIVATE LINKER:--no-as-needed)
  target_link_libraries(${target} PRIVATE hspan_glibc_dl hspan_glibc_pthread hspan_glibc_rt)
  set_target_properties(${target} PROPERTIES SKIP_BUILD_RPATH ON)
endfunction()
